"""Cross-entropy and OHEM against their definitions, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.segmentation_losses import VOID, Ohem, cross_entropy, ohem_cross_entropy
from tests.library.processes import averaged, on_two_processes

CLASSES = 4
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])


@pytest.fixture
def pixels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(CLASSES, (2, 6, 8), generator=generator).to(torch.uint8)
    label[0, :2] = VOID
    return torch.randn(2, CLASSES, 6, 8, generator=generator), label


def test_normalisations(pixels: tuple[Tensor, Tensor]) -> None:
    logits, label = pixels
    losses, weights = [], []
    for b, y, x in (label != VOID).nonzero().tolist():
        k = int(label[b, y, x])
        losses.append(-WEIGHTS[k] * logits[b, :, y, x].log_softmax(0)[k])
        weights.append(WEIGHTS[k])
    total = torch.stack(losses).sum()
    torch.testing.assert_close(cross_entropy(logits, label, WEIGHTS), total / torch.stack(weights).sum())
    torch.testing.assert_close(cross_entropy(logits, label, WEIGHTS, "pixels"), total / label.numel())
    expected = F.cross_entropy(logits, label.long(), ignore_index=VOID)
    torch.testing.assert_close(cross_entropy(logits, label), expected)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_two_processes_have_the_loss_of_one(
    pixels: tuple[Tensor, Tensor], class_weights: Tensor | None, tmp_path: Path
) -> None:
    """The first image has void pixels, the second has none."""
    logits, label = pixels

    def loss(rank: int) -> dict[str, Tensor]:
        mine = slice(rank, rank + 1)
        return {"ce": cross_entropy(logits[mine], label[mine], class_weights, over_processes=True)}

    two = averaged(on_two_processes(loss, tmp_path))
    torch.testing.assert_close(two["ce"], cross_entropy(logits, label, class_weights))


def test_logits_are_resized_to_the_label(pixels: tuple[Tensor, Tensor]) -> None:
    logits, label = pixels
    small = logits[..., ::2, ::2]
    large = F.interpolate(small, size=label.shape[1:], mode="bilinear")
    assert torch.equal(cross_entropy(small, label), cross_entropy(large, label))
    assert torch.equal(ohem_cross_entropy(small, label, Ohem()), ohem_cross_entropy(large, label, Ohem()))


@pytest.mark.parametrize("definition", ["batch", "image"])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 0), (0.3, 10), (0.0, 20), (0.99, 5), (0.2, 10_000)])
def test_ohem_keeps_the_hard_pixels(
    pixels: tuple[Tensor, Tensor], definition: Any, threshold: float, min_kept: int
) -> None:
    logits, label = pixels
    valid = label != VOID
    true = logits.softmax(1).gather(1, label.long().where(valid, 0)[:, None])[:, 0][valid]
    losses = -true.log() * WEIGHTS[label[valid].long()]
    count = min_kept * (len(label) if definition == "image" else 1)
    kept = true < max(threshold, true.sort().values[min(count, len(true) - 1)].item())
    expected = losses[kept].sum() / (label.numel() if definition == "image" else kept.sum())
    actual = ohem_cross_entropy(logits, label, Ohem(threshold, min_kept, definition), WEIGHTS)
    torch.testing.assert_close(actual, expected)


def test_void_and_easy_images_cost_nothing(pixels: tuple[Tensor, Tensor]) -> None:
    logits = pixels[0].requires_grad_()
    void = torch.full_like(pixels[1], VOID)
    losses = [cross_entropy(logits, void, WEIGHTS), ohem_cross_entropy(logits, void, Ohem())]
    sure = torch.full((1, CLASSES, 2, 2), -50.0)
    sure[:, 1] = 50.0
    easy = torch.ones(1, 2, 2, dtype=torch.uint8)
    assert ohem_cross_entropy(sure, easy, Ohem(0.5, 0)) == 0
    sum(losses).backward()
    assert all(loss == 0 for loss in losses)
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


def test_losses_are_float32(pixels: tuple[Tensor, Tensor]) -> None:
    logits, label = pixels
    half = logits.bfloat16()
    for loss in (cross_entropy(half, label), ohem_cross_entropy(half, label, Ohem())):
        assert loss.dtype == torch.float32
    torch.testing.assert_close(cross_entropy(half, label), cross_entropy(half.float(), label))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold=1.5 is a probability"),
        ({"min_kept": -1}, "min_kept=-1 pixels"),
        ({"definition": "pixel"}, "one of batch, image, not 'pixel'"),
    ],
)
def test_bad_ohem_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ohem(**options)
