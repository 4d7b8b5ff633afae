"""Where a pose network finds the joints of people: skeletons beside the annotated ones, and a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.reports.report import Report
from callbacks.whole_files import write_whole
from drawing.figures import LARGE
from drawing.poses import Sighting, Skeleton, pose_sheet
from lightning_modules.pose_estimation import PoseEstimation, PoseFindings

MEASURES = {"pckh": "PCKh@0.5", "pck": "PCK@0.1"}


class Poses(Report):
    """Draws the first people of an evaluation as annotated and as found, and writes where everybody's joints are.

    `poses.json` is a list of people with `image` (file name), `person` (position in the annotation file), `joints`
    (x, y of each in pixels of the image; they count from 1, as MPII's do) and `scores` (the heat at each).

    Args:
        people: on the picture.
    """

    reads = PoseEstimation
    pictures: ClassVar = {"poses.png": "joints found beside joints annotated"}
    files: ClassVar = {"poses.json": "joints found in the last evaluation"}

    def __init__(self, people: int = 12) -> None:
        self.people = people

    @override
    def draw(self) -> Mapping[str, Figure]:
        found = self.task.findings
        if not isinstance(found, PoseFindings):
            return {}
        shown = [self._sighting(found, row) for row in range(min(self.people, len(found.index)))]
        measure = self.task.measure
        title = f"{self.split}: {MEASURES[measure]} {found.metrics[measure]:.1f} %, {len(found.index):,} people"
        return {"poses": pose_sheet(shown, Skeleton(self.data.class_names, self.data.skeleton), title)}

    def _sighting(self, found: PoseFindings, row: int) -> Sighting:
        index = int(found.index[row])
        people = self.data.people(self.split)
        sighting = Sighting(
            # A person is a part of it.
            self.data.picture(self.split, index, LARGE),
            np.column_stack([found.joints[row].numpy(), found.scores[row].numpy()]),
            found.truth[row].numpy(),
            people.window(index),
            f"{people.images[index]} ({people.numbers[index]})",
        )
        return sighting.of_size(self.data.image_size(self.split, index))

    @override
    def write(self, folder: Path) -> None:
        found = self.task.findings
        if not isinstance(found, PoseFindings):
            return
        people = self.data.people(self.split)
        entries = [
            {
                "image": people.images[index],
                "person": people.numbers[index],
                "joints": [[round(x, 2), round(y, 2)] for x, y in (joints + 1).tolist()],
                "scores": [round(score, 4) for score in scores.tolist()],
            }
            for index, joints, scores in zip(found.index.tolist(), found.joints, found.scores, strict=True)
        ]
        write_whole(folder / "poses.json", json.dumps(entries))
