"""A student's feature maps follow its teacher's at some places: everywhere, or within the annotated boxes.

Reference: the masks that "Instance-Conditional Knowledge Distillation for Object Detection", arXiv 2110.12724, compares
itself with; foreground masks as in "Distilling Object Detectors with Fine-grained Feature Imitation", arXiv 1906.03609.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from models.distillation.instance_conditional.losses import imitation_loss
from models.distillation.instance_conditional.memory import Memory, finest_stride, sizes_of
from models.distillation.seen import Seen
from models.distillation.term import Term
from models.mistakes import Mistake


class Masked(Term):
    """Squared distance of normalised maps, behind a projection of the student's, averaged over some places of an image.

    Args:
        student: Layers of the student that return the maps.
        teacher: Layers of the teacher; the student's by default.
        weight: What the loss is multiplied by.
        where: `everywhere` that an image is, or within its annotated `boxes`.
    """

    def __init__(
        self,
        student: Sequence[str] = ("neck",),
        teacher: Sequence[str] | None = None,
        weight: float = 1.0,
        where: Literal["everywhere", "boxes"] = "everywhere",
    ) -> None:
        super().__init__(weight, student, teacher)
        if where not in ("everywhere", "boxes"):
            raise Mistake(f"Masked: where is everywhere or boxes, not {where!r}")
        self.where = where
        self.projection: nn.Linear | None = None
        self.stride = 0

    @override
    def prepare(self, student: Seen, teacher: Seen) -> None:
        self.check_sizes(student, teacher)
        own, theirs = self.pairs(student, teacher)[0]
        self.stride = finest_stride(student.inputs[0], own)
        if self.projection is None:
            self.projection = nn.Linear(own.shape[1], theirs.shape[1])

    @override
    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        assert self.projection is not None
        sizes = sizes_of(student.inputs[0])
        maps = student.maps(self.student_layers)
        padded = (maps[0].shape[2] * self.stride, maps[0].shape[3] * self.stride)
        own = Memory.of(maps, sizes, padded)
        theirs = torch.cat([each.flatten(2).transpose(1, 2) for each in teacher.maps(self.teacher_layers)], 1)
        counts = ~own.padding
        if self.where == "boxes":
            if len(student.inputs) < 2:
                raise Mistake("Masked needs targets with boxes beside the images")
            boxes = [target["boxes"] for target in student.inputs[1]]
            counts = counts & torch.cat([within(each.shape[2:], padded, boxes).flatten(1) for each in maps], 1)
        # As many heads as one, so that channels are normalised together.
        values = self.projection(own.cells)[:, :, None], theirs[:, :, None]
        return imitation_loss(*values, counts[:, None].to(own.cells.dtype))


def within(cells: Sequence[int], padded: tuple[int, int], boxes: Sequence[Tensor]) -> Tensor:
    """Which cells of a level have their centre in a box of their image.

    Args:
        cells: Rows and columns of the level.
        padded: Height and width of the batch in pixels.
        boxes: [n, 4], x0, y0, x1, y1 in pixels, of each image.

    Returns:
        bool [N, H, W].
    """
    found = []
    for each in boxes:
        y = (torch.arange(cells[0], device=each.device) + 0.5) * (padded[0] / cells[0])
        x = (torch.arange(cells[1], device=each.device) + 0.5) * (padded[1] / cells[1])
        x0, y0, x1, y1 = (side[:, None] for side in each.unbind(1))
        down, across = (y >= y0) & (y < y1), (x >= x0) & (x < x1)
        found.append((down[:, :, None] & across[:, None, :]).any(0))
    return torch.stack(found)
