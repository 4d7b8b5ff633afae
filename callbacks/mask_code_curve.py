"""How much of the objects' masks is kept by codes of rising length."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.checkpoints import Checkpoints
from drawing.figures import save
from callbacks.pictures import show
from models.layers.mask_code import MaskCode, mask_iou
from models.layers.mask_code_baselines import GridCode

# Squares, so that a grid has as many cells.
LENGTHS = (16, 36, 64, 144, 256, 529, 1024)


class MaskCodeCurve(Callback):
    """Draws the mean IoU of masks and what comes back from codes of rising length, of cosines and of a grid.

    For `lightning_modules.mask_coding.MaskCoding`, whose network has a `size` and whose validation steps return
    `crops`. The curve of a fit's last validation is `plots/mask_code_curve.png` of the run; lengths that the masks are
    too small for are left out.
    """

    def __init__(self) -> None:
        self._codes: dict[str, list[MaskCode | GridCode]] = {}
        # One row a code, of the IoU summed over the objects; the last number is how many objects there were.
        self._sums = torch.zeros(1)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the validation before."""
        device, size = pl_module.device, int(pl_module.network.size)  # type: ignore[arg-type]
        lengths = [length for length in LENGTHS if length <= size * size]
        kinds: dict[str, type[MaskCode | GridCode]] = {"cosines": MaskCode, "grid": GridCode}
        self._codes = {name: [kind(n, size).to(device) for n in lengths] for name, kind in kinds.items()}
        self._sums = torch.zeros(len(kinds) * len(lengths) + 1, device=device, dtype=torch.float64)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Codes the batch's objects in every way."""
        masks: Tensor = outputs["crops"]
        kept = [
            mask_iou(code.masks(code.encode(masks)), masks).sum() for codes in self._codes.values() for code in codes
        ]
        self._sums += torch.stack([*kept, torch.full_like(kept[0], len(masks))])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the curve over the objects of all processes."""
        if trainer.sanity_checking:
            return
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        folders = [c.folder for c in trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not folders or folders[0] is None:
            return
        means = (sums[:-1] / sums[-1].clamp(min=1)).view(len(self._codes), -1).tolist()
        curves = {
            name: ([code.num_coefficients for code in codes], values)
            for (name, codes), values in zip(self._codes.items(), means, strict=True)
        }
        figure = mask_code_curve(curves, f"val: {int(sums[-1]):,} objects")
        show(trainer, "val/mask_code_curve", save(figure, folders[0].parent / "plots" / "mask_code_curve.png"))


def mask_code_curve(curves: dict[str, tuple[list[Any], list[float]]], title: str = "") -> Figure:
    """Mean IoU over the length of a code.

    Args:
        curves: code -> (lengths, mean IoU at each).
        title: above the figure.
    """
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for name, (lengths, values) in curves.items():
        axes.plot(lengths, values, label=name, marker="o", markersize=3, linewidth=1.3)
    axes.set_xscale("log", base=2)
    ticks = sorted({length for lengths, _ in curves.values() for length in lengths})
    axes.set_xticks(ticks, [str(length) for length in ticks])
    axes.set(xlabel="numbers of a mask's code", ylabel="mean mask IoU", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
