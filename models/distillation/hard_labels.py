"""What a teacher decides: a student learns its most probable class as if it were the label.

Reference: "Training data-efficient image transformers & distillation through attention", arXiv 2012.12877, section 4,
as AutoFormer's training has it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from models.distillation.logits import check_answers
from models.distillation.seen import Seen, maps_of
from models.distillation.term import Term
from models.mistakes import Mistake


class HardLabels(Term):
    """Cross-entropy of a student's answers with the class that its teacher finds most probable.

    Of mixed images it is the teacher's for the mixture. As published, half of the loss is this and half is the labels':
    `weight: 0.5` beside a `task_weight` of 0.5. Of a student with exits, the mean over all of them.

    Args:
        weight: What the loss is multiplied by.
        label_smoothing: Share of the target spread evenly over all classes.

    Raises:
        Mistake: A share outside [0, 1).
    """

    def __init__(self, weight: float = 1.0, label_smoothing: float = 0.1) -> None:
        super().__init__(weight)
        if not 0 <= label_smoothing < 1:
            raise Mistake(f"label_smoothing is a share from 0 to below 1, not {label_smoothing:g}")
        self.label_smoothing = label_smoothing

    @override
    def prepare(self, student: Seen, teacher: Seen) -> None:
        check_answers(type(self).__name__, student, teacher)

    @override
    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        labels = maps_of(teacher.output)[-1].argmax(1)
        exits = maps_of(student.output)
        losses = [F.cross_entropy(each.float(), labels, label_smoothing=self.label_smoothing) for each in exits]
        return torch.stack(losses).mean()
