"""How the images of a batch lie to each other, in a student's features as in its teacher's.

Reference: "Relational Knowledge Distillation", arXiv 1904.05068, equations 4 to 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from models.distillation.seen import Seen
from models.distillation.term import Term
from models.mistakes import Mistake


def distances(points: Tensor) -> Tensor:
    """Distances of all pairs of points [B, C], relative to the mean of those that are not 0; [B, B]."""
    found = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return found / (found.sum() / (found > 0).sum().clamp(min=1)).clamp(min=1e-12)


def angles(points: Tensor) -> Tensor:
    """Cosines of the angles at each point [B, C] between the ways to any two others; [B, B, B]."""
    ways = F.normalize(points.unsqueeze(0) - points.unsqueeze(1), dim=2)
    return ways @ ways.transpose(1, 2)


class Relations(Term):
    """Distances and angles between the images of a batch follow the teacher's.

    Feature maps are averaged over their positions.

    Args:
        student: Layers of the student, by their names.
        teacher: Layers of the teacher, as many; the student's by default.
        weight: What the loss is multiplied by.
        distance: Weight of the distances.
        angle: Weight of the angles; the cost of these grows with the cube of the batch.

    Raises:
        Mistake: Neither has a weight.
    """

    def __init__(
        self,
        student: Sequence[str],
        teacher: Sequence[str] | None = None,
        weight: float = 1.0,
        distance: float = 25.0,
        angle: float = 50.0,
    ) -> None:
        super().__init__(weight, student, teacher)
        if distance < 0 or angle < 0 or not distance + angle:
            raise Mistake(f"weights are 0 or more, and not both 0: not {distance=:g}, {angle=:g}")
        self.distance, self.angle = distance, angle

    @override
    def prepare(self, student: Seen, teacher: Seen) -> None:
        self.pairs(student, teacher)

    @override
    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        total: list[Tensor] = []
        for maps in self.pairs(student, teacher):
            own, theirs = (each.float().flatten(2).mean(2) if each.ndim > 2 else each.float() for each in maps)
            if self.distance:
                total.append(self.distance * F.smooth_l1_loss(distances(own), distances(theirs)))
            if self.angle:
                total.append(self.angle * F.smooth_l1_loss(angles(own), angles(theirs)))
        return torch.stack(total).sum()
