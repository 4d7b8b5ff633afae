"""Where a pose network finds the joints of people: skeletons beside the annotated ones, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from drawing.figures import save
from callbacks.pictures import EvaluationPictures, show
from drawing.poses import Sighting, Skeleton, pose_sheet
from lightning_modules.pose_estimation import PoseEstimation, PoseReport


class PosePictures(EvaluationPictures):
    """Draws `poses.png`: the first people of an evaluation as annotated and as found; other tasks it leaves alone.

    While training goes on, validations are drawn now and then, and the last one at the end.

    Args:
        folder: where the picture goes; None draws nothing.
        people: on the picture.
        every_seconds: time between two drawings while training goes on.
    """

    def __init__(self, folder: Path | None = None, people: int = 12, every_seconds: float = 60.0) -> None:
        super().__init__(folder, every_seconds)
        self.people = people

    def draw(self, trainer: Trainer, pl_module: LightningModule, split: str) -> bool:
        """See `EvaluationPictures`."""
        report = _report(trainer, pl_module)
        if report is None:
            return False
        assert self.folder is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        shown = [sighting(data, split, report, row) for row in range(min(self.people, len(report.index)))]
        title = f"{split}: PCKh@0.5 {report.metrics['pckh']:.1f} %, {len(report.index):,} people"
        figure = pose_sheet(shown, Skeleton(data.class_names, data.skeleton), title)
        show(trainer, f"{split}/poses", save(figure, self.folder / "poses.png"))
        return True


class PoseFiles(Callback):
    """Writes `poses.json`, what the last evaluation of a command found; other tasks it leaves alone.

    It is a list of people with `image` (file name), `person` (position in the annotation file), `joints` (16 times x, y
    in pixels of the image; like the annotations they count from 1) and `scores` (16 times the heat there).

    Args:
        folder: where the file goes; None writes nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes, unless training goes on."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the test split."""
        self._write(trainer, pl_module, "test")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last validation."""
        self._write(trainer, pl_module, "val")

    def _write(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        report = _report(trainer, pl_module)
        if self.folder is None or report is None:
            return
        people = trainer.datamodule.people(split)  # type: ignore[attr-defined]
        entries = [
            {
                "image": people.images[index],
                "person": people.numbers[index],
                "joints": [[round(x, 2), round(y, 2)] for x, y in (joints + 1).tolist()],
                "scores": [round(score, 4) for score in scores.tolist()],
            }
            for index, joints, scores in zip(report.index.tolist(), report.joints, report.scores, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "poses.json").write_text(json.dumps(entries))


def sighting(data: Any, split: str, report: PoseReport, row: int) -> Sighting:
    """One person of a report, to be drawn.

    Args:
        data: the data module.
        split: which it is of.
        report: of the evaluation.
        row: which person.
    """
    index = int(report.index[row])
    people = data.people(split)
    left, top, right, bottom = people.window(index)
    found = np.column_stack([report.joints[row].numpy(), report.scores[row].numpy()])
    return Sighting(
        data.raw_image(split, index),
        found,
        report.truth[row].numpy(),
        (left, top, right, bottom),
        f"{people.images[index]} ({people.numbers[index]})",
    )


def _report(trainer: Trainer, pl_module: LightningModule) -> PoseReport | None:
    """What there is to draw or write, on the process that does."""
    if not isinstance(pl_module, PoseEstimation) or trainer.sanity_checking or not trainer.is_global_zero:
        return None
    return pl_module.report
