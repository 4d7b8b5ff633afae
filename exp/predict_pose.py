"""What `predict` makes of a pose network's answers: joints as JSON, and skeletons on a sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table

from drawing.figures import save
from drawing.poses import Sighting, Skeleton, pose_sheet
from exp.cli import Cli

ON_SHEET = 24


def write_poses(
    cli: Cli, batches: list[Any], names: list[str], folder: Path, console: Console
) -> tuple[None, list[Path]]:
    """Writes `poses.json` and `contact_sheet.png`, and prints how sure the network is of the first images.

    An image is taken as one person. The file is a list of `file`, and `joints` by name: x, y in pixels from 0, and the
    heat there.

    Args:
        cli: the command, after its prediction.
        batches: what the prediction steps returned.
        names: of the joints; empty for a checkpoint that does not say.
        folder: where the files go.
        console: where the table goes.

    Returns:
        None, as images have no exits of their own to be paid for, and the files.
    """
    data = cli.datamodule
    names = names or list(data.class_names)
    indices = torch.cat([batch["index"] for batch in batches]).tolist()
    joints = torch.cat([batch["joints"] for batch in batches]).cpu().numpy()
    scores = torch.cat([batch["scores"] for batch in batches]).cpu().numpy()
    files = [data.sample_name("predict", index) for index in indices]
    found = np.concatenate([joints, scores[..., None]], 2)
    entries = [
        {"file": file, "joints": {name: [round(v, 4) for v in each] for name, each in zip(names, person, strict=True)}}
        for file, person in zip(files, found.tolist(), strict=True)
    ]
    target = folder / "poses.json"
    target.write_text(json.dumps(entries, indent=1) + "\n")
    table = Table(Column("file", overflow="fold"), "mean score", "least sure of", box=None)
    for file, each in list(zip(files, scores, strict=True))[:ON_SHEET]:
        table.add_row(file, f"{each.mean():.3f}", names[int(each.argmin())])
    console.print(table, highlight=False)
    shown = [
        Sighting(data.raw_image("predict", index), person, caption=Path(file).name)
        for index, person, file in list(zip(indices, found, files, strict=True))[:ON_SHEET]
    ]
    title = f"{len(indices)} images" + (f", the first {ON_SHEET}" if len(indices) > ON_SHEET else "")
    sheet = save(pose_sheet(shown, Skeleton(names, data.skeleton), title), folder / "contact_sheet.png")
    return None, [target, sheet]
