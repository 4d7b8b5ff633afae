"""What a confusion matrix of pixels says: intersection over union and accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from typing_extensions import override

from lightning_modules.calibration import Calibration, calibration
from lightning_modules.exits import ExitMacs, exit_suffixes
from lightning_modules.findings import Findings, gathered
from lightning_modules.segmentation_losses import VOID
from models.mistakes import Mistake

Absent = Literal["exclude", "zero"]


@dataclass(frozen=True)
class Scores:
    """Scores of one exit over a whole split.

    Args:
        confusion: int64 [C, C], pixels of class i that were predicted as class j.
        iou: Intersection over union of each class, float64 [C]; NaN for an absent class that is excluded.
        accuracy: Share of each class's pixels that were predicted rightly, float64 [C]; NaN likewise.
        miou: Mean of `iou`.
        pixel_accuracy: Share of all pixels that were predicted rightly.
        class_accuracy: Mean of `accuracy`.
    """

    confusion: Tensor
    iou: Tensor
    accuracy: Tensor
    miou: float
    pixel_accuracy: float
    class_accuracy: float


def scores(confusion: Tensor, absent: Absent = "exclude") -> Scores:
    """Scores of a confusion matrix: IoU_c = tp_c / (row_c + column_c - tp_c).

    A class is absent from the union if it is neither annotated nor predicted, and from the accuracy if it is not
    annotated.

    Args:
        confusion: int64 [C, C], true classes by predicted ones, summed over all images and processes.
        absent: `exclude`, as MMSegmentation and Cityscapes' scripts: absent classes do not count in a mean. `zero`, as
            HRNet: they count as 0.

    Returns:
        The scores, on the CPU; NaN where nothing counts.

    Raises:
        Mistake: Another convention.
    """
    if absent not in ("exclude", "zero"):
        raise Mistake(f"absent classes are one of exclude, zero, not {absent!r}")
    confusion = confusion.cpu()
    right, true, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
    union = true + predicted - right
    if absent == "zero":
        union, true = union.clamp(min=1), true.clamp(min=1)
    # 0 / 0 is what marks a class that is left out.
    iou, accuracy = right.double() / union, right.double() / true
    return Scores(
        confusion,
        iou,
        accuracy,
        miou=iou.nanmean().item(),
        pixel_accuracy=(right.sum().double() / confusion.sum()).item(),
        class_accuracy=accuracy.nanmean().item(),
    )


@dataclass
class Tally:
    """What one process has counted of an evaluation; tallies of several processes add up exactly.

    Args:
        confusion: int64 [C, C] of each exit, see `Scores`.
        losses: Sum of the images' losses, float64 of each exit.
        macs: Multiply-adds up to each exit, the sum over the images; empty where they were not counted.
        images: Images.
        published_macs, dense_macs: The same as the network's paper counts them, and where every pixel is computed;
            empty for networks that do not say.
        calibration: Counts of each exit, see `calibration.confidence_counts`; empty for networks with one exit.
    """

    confusion: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    macs: list[float] = field(default_factory=list)
    images: int = 0
    published_macs: list[float] = field(default_factory=list)
    dense_macs: list[float] = field(default_factory=list)
    calibration: list[Tensor] = field(default_factory=list)

    def count(self, exit: int, predicted: Tensor, label: Tensor, num_classes: int, loss: Tensor | float = 0.0) -> None:
        """Counts the pixels of an image at one exit.

        Args:
            exit: 0 ...
            predicted, label: Classes [H, W]; pixels of label 255 do not count.
            num_classes: C.
            loss: Loss of the image, a scalar.
        """
        confusion = multiclass_confusion_matrix(
            predicted, label, num_classes, ignore_index=VOID, validate_args=False
        ).long()
        if exit == len(self.confusion):
            self.confusion.append(torch.zeros_like(confusion))
            self.losses.append(torch.zeros((), dtype=torch.float64, device=label.device))
        self.confusion[exit] += confusion
        self.losses[exit] += loss

    def calibrate(self, exit: int, counts: Tensor) -> None:
        """Adds an image's counts of confidence at one exit, see `calibration.confidence_counts`."""
        if exit == len(self.calibration):
            self.calibration.append(torch.zeros_like(counts))
        self.calibration[exit] += counts

    def spend(self, images: int, spent: ExitMacs) -> None:
        """Adds what a forward pass of so many images took."""
        self.macs = _added(self.macs, [images * each for each in spent.executed])
        self.published_macs = _added(self.published_macs, [images * each for each in spent.published])
        self.dense_macs = _added(self.dense_macs, [images * each for each in spent.dense])

    def per_image(self, macs: list[float]) -> list[float]:
        """The mean over the images of one of the sums."""
        return [each / self.images for each in macs]

    def cpu(self) -> Tally:
        """The same numbers on the host."""
        return replace(
            self,
            confusion=[each.cpu() for each in self.confusion],
            losses=[each.cpu() for each in self.losses],
            calibration=[each.cpu() for each in self.calibration],
        )

    def over_processes(self) -> Tally:
        """The sum over all processes, on the host; each process must ask."""
        return Tally.sum(gathered(self.cpu()))

    @staticmethod
    def sum(tallies: list[Tally]) -> Tally:
        """Of several tallies; those without an image have counted no exits."""
        counted = [tally for tally in tallies if tally.images]
        return Tally(
            [torch.stack(each).sum(0) for each in zip(*(tally.confusion for tally in counted), strict=True)],
            [torch.stack(each).sum(0) for each in zip(*(tally.losses for tally in counted), strict=True)],
            [sum(each) for each in zip(*(tally.macs for tally in counted), strict=True)],
            sum(tally.images for tally in counted),
            [sum(each) for each in zip(*(tally.published_macs for tally in counted), strict=True)],
            [sum(each) for each in zip(*(tally.dense_macs for tally in counted), strict=True)],
            [torch.stack(each).sum(0) for each in zip(*(tally.calibration for tally in counted), strict=True)],
        )


@dataclass(frozen=True)
class SegmentationFindings(Findings):
    """What an evaluation has found.

    Args:
        class_names: Names of the C classes.
        exits: Scores of each exit, cheapest first.
        macs: Multiply-adds that an image took up to each exit, the mean over the split, counted from the operators
            that ran; empty where they were not counted.
        images: Evaluated images.
        published_macs, dense_macs: The same as the network's paper counts them, and where every pixel is computed;
            empty for networks that do not say.
        calibration: How sure each exit may be; empty for networks with one exit.
    """

    class_names: list[str] = field(default_factory=list)
    exits: list[Scores] = field(default_factory=list)
    macs: list[float] = field(default_factory=list)
    images: int = 0
    published_macs: list[float] = field(default_factory=list)
    dense_macs: list[float] = field(default_factory=list)
    calibration: list[Calibration] = field(default_factory=list)

    @classmethod
    def of(cls, tally: Tally, class_names: list[str], absent: Absent) -> SegmentationFindings:
        """The findings of a tally over all processes."""
        found = cls(
            {},
            class_names,
            [scores(confusion, absent) for confusion in tally.confusion],
            tally.per_image(tally.macs),
            tally.images,
            tally.per_image(tally.published_macs),
            tally.per_image(tally.dense_macs),
            [calibration(counts) for counts in tally.calibration],
        )
        losses = zip(exit_suffixes(len(tally.losses)), tally.losses, strict=True)
        return replace(
            found, metrics=found._metrics() | {f"loss{name}": loss.item() / tally.images for name, loss in losses}
        )

    def _metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for i, (name, found) in enumerate(zip(exit_suffixes(len(self.exits)), self.exits, strict=True)):
            metrics |= {
                f"miou{name}": found.miou,
                f"pixel_accuracy{name}": found.pixel_accuracy,
                f"class_accuracy{name}": found.class_accuracy,
            }
            for kind in ("macs", "published_macs"):
                if macs := getattr(self, kind):
                    metrics[f"{kind}{name}"] = macs[i]
            if self.calibration:
                metrics[f"calibration_error{name}"] = self.calibration[i].error
                # Nothing is skipped after the last exit, or without a threshold.
                if not math.isnan(self.calibration[i].sure_share):
                    metrics[f"sure_share{name}"] = self.calibration[i].sure_share
                if not math.isnan(self.calibration[i].sure_accuracy):
                    metrics[f"sure_accuracy{name}"] = self.calibration[i].sure_accuracy
        if len(self.exits) > 1:
            metrics["miou_mean"] = sum(found.miou for found in self.exits) / len(self.exits)
        if self.dense_macs:
            metrics["macs_saved"] = 1 - self.macs[-1] / self.dense_macs[-1]
            metrics["published_macs_saved"] = 1 - self.published_macs[-1] / self.dense_macs[-1]
        return metrics

    @override
    def table(self) -> list[list[str]]:
        """Intersection over union of each class and exit."""
        return self.rows(["iou"])

    def rows(self, kinds: Sequence[str] = ("iou", "accuracy")) -> list[list[str]]:
        """A table of the classes: names of the columns, a row for each class, and the means; last exit first.

        Args:
            kinds: What is said of each class and exit.
        """
        names, last = exit_suffixes(len(self.exits)), self.exits[-1]
        columns = [
            (f"{kind}{name}", exit, kind) for name, exit in zip(names, self.exits, strict=True) for kind in kinds
        ]
        columns = columns[-len(kinds) :] + columns[: -len(kinds)]
        table = [["class", "pixels", *(name for name, *_ in columns)]]
        for k, pixels in enumerate(last.confusion.sum(1).tolist()):
            values = [getattr(exit, kind)[k].item() for _, exit, kind in columns]
            table.append([self.class_names[k], str(pixels), *map(_cell, values)])
        means = [exit.miou if kind == "iou" else exit.class_accuracy for _, exit, kind in columns]
        return [*table, ["mean", str(int(last.confusion.sum())), *map(_cell, means)]]


def _added(sums: list[float], terms: list[float]) -> list[float]:
    return [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms


def _cell(value: float) -> str:
    """Four digits; nothing for a class that does not count."""
    return "" if math.isnan(value) else f"{value:.4f}"
