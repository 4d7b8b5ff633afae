"""What `predict` makes of features: the images that are most like each image."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor
from typing_extensions import override

from callbacks.reports.predictions import Predictions, title_of
from callbacks.whole_files import write_picture, write_whole
from drawing.features import Captioned, image_rows
from drawing.figures import SMALL
from lightning_modules.self_supervised import SelfSupervised
from models.mistakes import Mistake
from models.self_supervised.knn import nearest

ON_SHEET = 12


class Neighbours(Predictions):
    """Writes which images are nearest to each image, by their features.

    `neighbours.json` is a list of `file` and `neighbours`, each a `file` and its cosine `similarity`, the nearest
    first. An image is no neighbour of itself.

    Args:
        neighbours: how many are named.
        among: a folder in which neighbours are looked for (default: the images that the run was trained on).
    """

    reads = SelfSupervised

    def __init__(self, neighbours: int = 5, among: str | None = None) -> None:
        super().__init__()
        if neighbours < 1:
            raise Mistake(f"--neighbours {neighbours}: name one or more")
        self.neighbours, self.among = neighbours, among
        self._known: dict[str, Tensor] = {}

    @property
    def _split(self) -> str:
        return "train" if self.among is None else "files"

    @override
    def start(self) -> None:
        """Takes the features of those among which neighbours are looked for."""
        data = self.data
        if self.among is None:
            batches = data.plain_train_dataloader()
        elif not os.path.exists(self.among):
            raise Mistake(f"--among {self.among}: no such folder")
        else:
            batches = data.file_dataloader([Path(self.among)])
        self._known = self.task.features_of(batches)

    @override
    def finish(self, batches: list[Any], folder: Path, console: Console) -> list[Path]:
        indices = torch.cat([batch["index"] for batch in batches]).tolist()
        features = torch.cat([batch["features"] for batch in batches]).cpu()
        files = [self.data.sample_name("predict", index) for index in indices]
        places = self._known["index"].tolist()
        names = [self.data.sample_name(self._split, place) for place in places]
        bank = self._known[self.task.sides[0]].cpu()
        # One more, as the image itself may be among them.
        similarities, nearest_ones = nearest(features, bank, self.neighbours + 1)
        own = [os.path.realpath(name) for name in names]
        found: list[list[tuple[int, float]]] = []
        for row, file in enumerate(files):
            pairs = zip(nearest_ones[row].tolist(), similarities[row].tolist(), strict=True)
            itself = os.path.realpath(file)
            found.append([pair for pair in pairs if own[pair[0]] != itself][: self.neighbours])
        told = [
            {"file": file, "neighbours": [{"file": names[i], "similarity": round(s, 4)} for i, s in each]}
            for file, each in zip(files, found, strict=True)
        ]
        write_whole(target := folder / "neighbours.json", json.dumps(told, indent=2) + "\n")
        table = Table(Column("file", overflow="fold"), Column("nearest", overflow="fold"), "similarity", box=None)
        rows = []
        for row in range(min(ON_SHEET, len(files))):
            first = Captioned(self.data.picture("predict", indices[row], SMALL), Path(files[row]).name)
            others = [
                Captioned(self.data.picture(self._split, places[i], SMALL), f"{Path(names[i]).name}\n{s:.2f}")
                for i, s in found[row]
            ]
            rows.append([first, *others])
            if found[row]:
                place, similarity = found[row][0]
                table.add_row(escape(files[row]), escape(names[place]), f"{similarity:.2f}")
        title = f"{title_of(len(files), ON_SHEET)}; on the right of each, the nearest of {len(names):,}"
        sheet = write_picture(folder / "neighbours.png", image_rows(rows, title))
        console.print(table, highlight=False)
        return [target, sheet]
