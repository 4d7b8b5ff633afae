"""What a teacher decides, as a loss."""

from __future__ import annotations

import pytest
import torch

from models.distillation import HardLabels, Seen
from models.mistakes import Mistake


def test_the_loss_is_that_of_the_teachers_class() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    answers = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    classes, logs = answers.argmax(1), logits.log_softmax(1)
    smoothed = 0.9 * logs.gather(1, classes[:, None])[:, 0] + 0.1 * logs.mean(1)
    loss = HardLabels(label_smoothing=0.1)(Seen((), logits), Seen((), answers))
    torch.testing.assert_close(loss, -smoothed.mean())
    # Only what the teacher finds most probable counts, of its last exit; and all exits of the student learn it.
    both = HardLabels()(Seen((), [logits, 2 * logits]), Seen((), [-answers, 3 * answers]))
    alone = [HardLabels()(Seen((), each), Seen((), answers)) for each in (logits, 2 * logits)]
    torch.testing.assert_close(both, torch.stack(alone).mean())
    loss.backward()
    assert logits.grad is not None


def test_what_cannot_be_compared() -> None:
    with pytest.raises(Mistake, match="label_smoothing is a share from 0 to below 1, not 1"):
        HardLabels(label_smoothing=1.0)
    with pytest.raises(Mistake, match="tells 5 classes apart, the teacher 4"):
        HardLabels().prepare(Seen((), torch.zeros(2, 5)), Seen((), torch.zeros(2, 4)))
