"""What `predict` makes of a pose network's answers: joints as JSON, and skeletons on a sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from typing_extensions import override

from callbacks.reports.predictions import Predictions, title_of
from callbacks.whole_files import write_picture, write_whole
from drawing.figures import SMALL
from drawing.poses import Sighting, Skeleton, pose_sheet
from lightning_modules.pose_estimation import PoseEstimation
from models.mistakes import Mistake

ON_SHEET = 24


class FoundJoints(Predictions):
    """Writes where the joints of the one person in each image are, and how sure the network is of them.

    `poses.json` is a list of `file`, and `joints` by name: x, y in pixels from 0, and the heat there.
    """

    reads = PoseEstimation

    @override
    def entries(self, batches: list[Any], task: Any, data: Any) -> list[dict[str, Any]]:
        """Of each image `file`, and `joints` by name: x, y in pixels from 0, and the heat there."""
        names = self.names or list(data.class_names)
        indices = torch.cat([batch["index"] for batch in batches]).tolist()
        found = torch.cat([torch.cat([batch["joints"], batch["scores"][..., None]], 2) for batch in batches])
        if len(names) != found.shape[1]:
            raise Mistake(
                f"{len(names)} joints have names, but the network finds {found.shape[1]}: take another checkpoint"
            )
        entries = []
        for index, person in zip(indices, found.tolist(), strict=True):
            by_name = {name: [round(value, 4) for value in each] for name, each in zip(names, person, strict=True)}
            entries.append({"file": data.sample_name("predict", index), "joints": by_name})
        return entries

    @override
    def finish(self, batches: list[Any], folder: Path, console: Console) -> list[Path]:
        data = self.data
        names = self.names or list(data.class_names)
        entries = self.entries(batches, self.task, data)
        indices = torch.cat([batch["index"] for batch in batches]).tolist()
        joints = torch.cat([batch["joints"] for batch in batches]).cpu().numpy()
        scores = torch.cat([batch["scores"] for batch in batches]).cpu().numpy()
        files = [entry["file"] for entry in entries]
        found = np.concatenate([joints, scores[..., None]], 2)
        target = folder / "poses.json"
        write_whole(target, json.dumps(entries, indent=1) + "\n")
        table = Table(Column("file", overflow="fold"), "mean score", "least sure of", box=None)
        for file, each in list(zip(files, scores, strict=True))[:ON_SHEET]:
            table.add_row(escape(file), f"{each.mean():.3f}", escape(names[int(each.argmin())]))
        console.print(table, highlight=False)
        shown = [
            Sighting(data.picture("predict", index, SMALL), person, caption=Path(file).name).of_size(
                data.image_size("predict", index)
            )
            for index, person, file in list(zip(indices, found, files, strict=True))[:ON_SHEET]
        ]
        figure = pose_sheet(shown, Skeleton(names, data.skeleton), title_of(len(indices), ON_SHEET))
        return [target, write_picture(folder / "contact_sheet.png", figure)]
