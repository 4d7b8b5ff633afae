"""A student looks where its teacher looks.

Reference: "Paying More Attention to Attention", arXiv 1612.03928, equation 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from models.distillation.seen import Seen
from models.distillation.term import Term


def attention_map(features: Tensor) -> Tensor:
    """Where a feature map [B, C, ...] is strong: squares summed over the channels, of length one over the positions.

    Returns:
        [B, positions] in single precision.
    """
    return F.normalize(features.float().square().mean(1).flatten(1))


class AttentionTransfer(Term):
    """Distance of the attention maps of both networks, which need not have as many channels.

    Args:
        student: Layers of the student, by their names.
        teacher: Layers of the teacher, as many; the student's by default.
        weight: What the loss is multiplied by; the paper's is 1000 / 2 with this mean over positions and images.
    """

    def __init__(self, student: Sequence[str], teacher: Sequence[str] | None = None, weight: float = 500.0) -> None:
        super().__init__(weight, student, teacher)

    @override
    def prepare(self, student: Seen, teacher: Seen) -> None:
        self.check_sizes(student, teacher)

    @override
    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        pairs = self.pairs(student, teacher)
        return torch.stack([F.mse_loss(attention_map(own), attention_map(theirs)) for own, theirs in pairs]).sum()
