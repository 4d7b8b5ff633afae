"""How much of the objects' masks is kept by codes of rising length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.report import Report
from drawing.mask_codes import mask_code_curve
from lightning_modules.findings import gathered
from lightning_modules.mask_coding import MaskCoding
from lightning_modules.task import Batch
from models.layers.mask_code import MaskCode, mask_iou
from models.layers.mask_code_baselines import GridCode

# Squares, so that a grid has as many cells.
LENGTHS = (16, 36, 64, 144, 256, 529, 1024)


class MaskCodeCurve(Report):
    """Draws the mean IoU of masks and what comes back from codes of rising length, of cosines and of a grid.

    Lengths that the masks are too small for are left out.
    """

    reads = MaskCoding
    pictures: ClassVar = {"mask_code_curve.png": "how much of a mask a code of so many numbers keeps"}
    in_every_run = False
    splits = ("val",)

    def __init__(self) -> None:
        self._codes: dict[str, list[MaskCode | GridCode]] = {}
        # One row a code, of the IoU summed over the objects; the last number is how many objects there were.
        self._sums = torch.zeros(1)

    @override
    def start(self) -> None:
        device, size = self.task.device, self.task.network.size
        lengths = [length for length in LENGTHS if length <= size * size]
        kinds: dict[str, type[MaskCode | GridCode]] = {"cosines": MaskCode, "grid": GridCode}
        self._codes = {name: [kind(n, size).to(device) for n in lengths] for name, kind in kinds.items()}
        self._sums = torch.zeros(len(kinds) * len(lengths) + 1, device=device, dtype=torch.float64)

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        masks: Tensor = outputs["crops"]
        kept = [
            mask_iou(code.masks(code.encode(masks)), masks).sum() for codes in self._codes.values() for code in codes
        ]
        self._sums += torch.stack([*kept, torch.full_like(kept[0], len(masks))])

    @override
    def merge(self) -> None:
        self._sums = torch.stack(gathered(self._sums.cpu())).sum(0)

    @override
    def draw(self) -> Mapping[str, Figure]:
        means = (self._sums[:-1] / self._sums[-1].clamp(min=1)).view(len(self._codes), -1).tolist()
        curves = {
            name: ([code.num_coefficients for code in codes], values)
            for (name, codes), values in zip(self._codes.items(), means, strict=True)
        }
        title = f"{self.split}: {int(self._sums[-1]):,} objects"
        return {"mask_code_curve": mask_code_curve(curves, title)}
