"""A student's feature maps follow its teacher's, behind an adapter.

Reference: "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from models.distillation.seen import Seen
from models.distillation.term import Term


class Hints(Term):
    """Mean squared distance of feature maps; a 1x1 convolution widens the student's where they have fewer channels.

    The distance is over all positions and channels; `normalise` compares the maps with mean 0 and deviation 1 over each
    position's channels, so that their scale is of no consequence.

    Args:
        weight: What the loss is multiplied by.
        student: Layers of the student, by their names.
        teacher: Layers of the teacher, as many; the student's by default.
        normalise: Whether scale and offset of each position are left out.
    """

    def __init__(
        self,
        student: Sequence[str],
        teacher: Sequence[str] | None = None,
        weight: float = 1.0,
        normalise: bool = False,
    ) -> None:
        super().__init__(weight, student, teacher)
        self.normalise = normalise
        self.adapters = nn.ModuleList()

    @override
    def prepare(self, student: Seen, teacher: Seen) -> None:
        self.check_sizes(student, teacher)
        if not self.adapters:
            for own, theirs in self.pairs(student, teacher):
                widths = own.shape[1], theirs.shape[1]
                conv = nn.Conv1d(*widths, 1) if own.ndim != 4 else nn.Conv2d(*widths, 1)
                self.adapters.append(nn.Identity() if widths[0] == widths[1] else conv)

    @override
    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        losses = []
        for adapter, (own, theirs) in zip(self.adapters, self.pairs(student, teacher), strict=True):
            own, theirs = _widened(adapter, own), _rows(theirs).float()
            if self.normalise:
                own, theirs = _normalised(own), _normalised(theirs)
            losses.append(F.mse_loss(own, theirs))
        return torch.stack(losses).sum()


def _rows(features: Tensor) -> Tensor:
    """Features [B, C, ...] as [B, C, positions]."""
    return features.flatten(2) if features.ndim > 2 else features.unsqueeze(2)


def _widened(adapter: nn.Module, features: Tensor) -> Tensor:
    """What an adapter makes of features [B, C, ...], [B, C', positions] in single precision.

    A 1x1 convolution is one product over the positions of all images: kernels of convolutions are many times slower
    where each image has few of them.
    """
    rows = _rows(features)
    if isinstance(adapter, nn.Conv1d | nn.Conv2d):
        assert adapter.bias is not None
        positions = rows.transpose(0, 1).flatten(1)
        product = torch.addmm(adapter.bias[:, None], adapter.weight.flatten(1), positions)
        rows = product.unflatten(1, (len(features), -1)).transpose(0, 1)
    return rows.float()


def _normalised(features: Tensor) -> Tensor:
    return F.layer_norm(features.movedim(1, -1), (features.shape[1],))
