"""`python -m exp data CONFIG`: what is in a data set and what is wrong with it, before anything trains.

`python -m exp data pack CONFIG` is `exp.packing`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from callbacks.whole_files import write_picture, write_whole
from datamodules import DataError, DataModule
from datamodules.decoding import Encoded, fitted
from datamodules.finding import shown
from datamodules.looking import Marks
from drawing.data import Sample, class_balance, sample_sheet, size_scatter
from drawing.detection import Objects
from drawing.figures import contact_sheet, evenly
from exp.cli import Cli
from exp.lookalikes import alike, fingerprint
from exp.quiet import silence
from exp.usage import UsageError

SPLITS = ("train", "val", "test")
# Reading and decoding release Python's lock.
THREADS = 4
# Images of a split that are opened, unless more are asked for; records of a kind of fault that are shown.
LOOKED, NAMED = 5000, 3
ON_A_SHEET, PAIRS, SMALL, DRAWN = 20, 10, 96, 512


class DataAlone(Cli):
    """Builds the data module of a config, and nothing else."""

    def instantiate_classes(self) -> None:
        """Builds the data module."""
        self.datamodule = self.counted or self.parser.instantiate(Namespace(data=self.config.data)).data
        self.datamodule.seed = self.config.seed_everything or 0


@dataclass
class Look:
    """What has been seen of the images of a split.

    Args:
        indices: Positions of those that could be opened.
        sizes: Width and height of each.
        boxes: Width and height of each object.
        hashes, small: See `fingerprint`.
    """

    indices: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    boxes: list[tuple[float, float]] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    small: list[np.ndarray] = field(default_factory=list)


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: Arguments after `data`; those that are not options here are of the config, as for `fit`.

    Returns:
        Exit code: 1 if there is something wrong with the data.
    """
    if argv[:1] == ["pack"]:
        from exp import packing  # which needs what this file says of configs

        return packing.main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m exp data",
        usage="%(prog)s CONFIG [overrides as for fit] [options]",
        description="Show what is in a data set and what is wrong with it: counts, sizes, duplicates, samples. "
        "`data pack` packs those to train on at the size that training needs.",
        allow_abbrev=False,
    )
    parser.add_argument("-o", "--output", type=Path, help="folder of what is written (default: data_EXPERIMENT)")
    parser.add_argument("--images", type=int, default=LOOKED, help=f"opened of each split (default: {LOOKED}; 0: all)")
    options, config = parser.parse_known_args(argv)
    silence()
    cli = DataAlone(config, "data")
    data = cli.datamodule
    if not isinstance(data, DataModule):
        raise UsageError(f"data: {type(data).__name__} is no data module of exp's, and cannot be looked at")
    console = Console(emoji=False)
    folder = options.output or Path(f"data_{cli.experiment}")
    try:
        return _show(data, folder, options.images, console)
    except DataError as error:
        print(f"exp: {error}", file=sys.stderr)
        return 1


def _show(data: DataModule, folder: Path, most: int, console: Console) -> int:
    data.collect_faults()
    remarks: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        splits = [split for split in SPLITS if data.has(split)]  # type: ignore[arg-type]
        try:
            remarks = data.inspect()
        except DataError as error:
            remarks = [str(error)]
    remarks += [line for line in (str(each.message).splitlines()[0] for each in told) if "left out" not in line]
    looks = {split: _look(data, split, most) for split in splits}
    counts = {split: found for split in splits if (found := data.class_counts(split)) is not None}
    names = list(data.class_names)
    faults = _kinds(data.bad_samples)
    pairs = _duplicates(looks)
    places = {"images": {split: np.array(look.sizes) for split, look in looks.items() if look.sizes}}
    if any(look.boxes for look in looks.values()):
        places["boxes"] = {split: np.array(look.boxes) for split, look in looks.items() if look.boxes}
    report = {
        "data": type(data).__name__,
        "described": data.described(),
        "splits": {
            split: {"samples": len(data.source(split)), "opened": len(looks[split].indices)}
            | {name: _spread(sizes[split]) for name, sizes in places.items() if split in sizes}
            for split in splits
        },
        "classes": {
            name: {
                split: {"images": int(each.images[k])}
                | ({} if each.amount is None else {each.unit: int(each.amount[k])})
                for split, each in counts.items()
            }
            for k, name in enumerate(names)
        }
        if counts
        else {},
        "remarks": remarks,
        "faults": {kind: {"records": len(records), "first": records[:100]} for kind, records in faults.items()},
        "alike": [
            {where: data.sample_name(*each) for where, each in zip(("one", "other"), pair, strict=True)}
            | {"splits": [one[0] for one in pair]}
            for pair in pairs
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"samples.png": _raw_sheet(data, splits, looks), "augmented.png": _augmented_sheet(data, looks)}
    if counts and any(each.images.any() for each in counts.values()):
        bars: dict[str, dict[str, np.ndarray]] = {"images": {split: each.images for split, each in counts.items()}}
        for split, each in counts.items():
            if each.amount is not None:
                bars.setdefault(each.unit, {})[split] = each.amount
        figures["classes.png"] = class_balance(names, bars, "classes")
    if any(places.values()):
        figures["sizes.png"] = size_scatter({name: each for name, each in places.items() if each}, "sizes")
    across = [pair for pair in pairs if pair[0][0] != pair[1][0]]
    if shown_pairs := (across or pairs)[:PAIRS]:
        both = [one for pair in shown_pairs for one in pair]
        captions = [f"{split}: {Path(data.sample_name(split, index)).name}" for split, index in both]
        pictures = [data.picture(split, index, DRAWN) for split, index in both]
        figures["alike.png"] = contact_sheet(pictures, captions, "pairs of images that look alike")
    for name, figure in figures.items():
        if figure is not None:
            write_picture(folder / name, figure)
    write_whole(folder / "data.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    _tell(report, across, console)
    written = ", ".join(["data.json", *(name for name, figure in figures.items() if figure is not None)])
    console.print(f"in {folder}: {written}", highlight=False, soft_wrap=True, markup=False)
    return int(bool(faults))


def _look(data: DataModule, split: str, most: int) -> Look:
    """Opens the images of a split, or so many from all over it."""
    source, look = data.source(split), Look()
    indices = evenly(range(len(source)), most or len(source))

    def open_one(index: int) -> Any:
        try:
            sample = source.load(index)
            image = sample["image"]
            small = image.reduced(SMALL) if isinstance(image, Encoded) else fitted(image, SMALL)
            height, width = image.size() if isinstance(image, Encoded) else image.shape[:2]
            target = sample.get("target")
            boxes = None if target is None else np.asarray(target["boxes"], np.float64)
            return (width, height), boxes, fingerprint(small)
        except DataError as problem:
            return problem

    with ThreadPoolExecutor(THREADS) as threads, Progress(transient=True) as progress:
        found = threads.map(open_one, indices)
        for index in progress.track(indices, description=f"Opening the {split} images"):
            seen = next(found)
            if isinstance(seen, DataError):
                data.bad_samples[shown(source.name(index))] = str(seen)
                continue
            size, boxes, (value, small) = seen
            look.indices.append(index)
            look.sizes.append(size)
            if boxes is not None:
                look.boxes += [tuple(each) for each in (boxes[:, 2:] - boxes[:, :2]).tolist()]
            look.hashes.append(value)
            look.small.append(small)
    return look


def _kinds(faults: dict[str, str]) -> dict[str, list[str]]:
    """Faults by their kind: what is said of them, without the names and numbers in it."""
    found: dict[str, list[str]] = defaultdict(list)
    for record, reason in faults.items():
        words = ["…" if re.search(r"[\d/\\\\]|\.\w{2,4}$", word) else word for word in reason.rstrip(".").split()]
        kind = re.sub(r"…( …)+", "…", " ".join(words))
        found[kind].append(f"{record}: {reason}")
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _duplicates(looks: dict[str, Look]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Pairs of images that look alike, those of different splits first."""
    places = [(split, index) for split, look in looks.items() for index in look.indices]
    hashes = [value for look in looks.values() for value in look.hashes]
    small = [picture for look in looks.values() for picture in look.small]
    pairs = [(places[one], places[other]) for one, other in alike(hashes, small)]
    return sorted(pairs, key=lambda pair: pair[0][0] == pair[1][0])


def _spread(values: np.ndarray) -> dict[str, list[float]]:
    """Smallest, middle and largest width and height."""
    named = {"smallest": values.min(0), "median": np.median(values, 0), "largest": values.max(0)}
    return {name: [round(float(each), 1) for each in pair] for name, pair in named.items()}


def _raw_sheet(data: DataModule, splits: Sequence[str], looks: dict[str, Look]) -> Any:
    """Samples of all splits as they are, from all over each."""
    share = max(1, ON_A_SHEET // max(1, len(splits)))
    samples = []
    for split in splits:
        for index in evenly(looks[split].indices, share):
            sample = data.source(split).load(index)
            image = sample["image"]
            image = image.decode() if isinstance(image, Encoded) else image
            caption = f"{split}: {Path(data.sample_name(split, index)).name}"
            samples.append(_drawn(image, data.marks(sample), caption))
    return sample_sheet(samples, list(data.class_names), "as they are") if samples else None


def _augmented_sheet(data: DataModule, looks: dict[str, Look]) -> Any:
    """Training samples as the network gets them: each twice, as in two epochs."""
    if "train" not in looks:
        return None
    pipeline, source, samples = data.pipeline_for("train"), data.source("train"), []
    for index in evenly(looks["train"].indices, ON_A_SHEET // 2):
        for epoch in (0, 1):
            sample = pipeline(source.load(index), epoch, index)
            views = sample["image"] if isinstance(sample["image"], list) else [sample["image"]]
            name = Path(data.sample_name("train", index)).name
            samples += [_drawn(view, data.marks(sample), f"{name}, epoch {epoch + 1}") for view in views[:2]]
    return sample_sheet(samples[: 2 * ON_A_SHEET], list(data.class_names), "as they are trained on")


def _drawn(image: np.ndarray, marks: Marks, caption: str) -> Sample:
    """A sample as a sheet shows it."""
    size = (int(image.shape[0]), int(image.shape[1]))
    small = fitted(image, DRAWN)
    objects, joints = None, marks.joints
    if marks.boxes is not None and marks.labels is not None:
        objects = Objects(marks.boxes, marks.labels, masks=marks.masks).drawn_on(small, size)
    if joints is not None:
        joints = joints * [small.shape[1] / size[1], small.shape[0] / size[0], 1]
    text = "\n".join(part for part in (caption, marks.caption) if part)
    return Sample(small, text, objects, marks.pixels, marks.palette, joints, marks.bones)


def _tell(report: dict[str, Any], across: Sequence[Any], console: Console) -> None:
    if report["described"]:
        console.print(report["described"], highlight=False, soft_wrap=True, markup=False)
    table = Table("split", "samples", "width x height", "", box=None)
    for split, facts in report["splits"].items():
        images, boxes = facts.get("images"), facts.get("boxes")
        table.add_row(
            split,
            f"{facts['samples']:,}",
            "" if images is None else f"{_pair(images['smallest'])} to {_pair(images['largest'])}",
            "" if boxes is None else f"boxes {_pair(boxes['median'])} in the middle",
        )
    console.print(table, highlight=False)
    _tell_classes(report["classes"], console)
    for remark in report["remarks"]:
        console.print(escape(remark), style="yellow", highlight=False, soft_wrap=True)
    if report["alike"]:
        text = f"{len(report['alike'])} pairs of images look alike, {len(across)} of them in different splits"
        console.print(text, style="yellow" if across else None, highlight=False)
    for kind, found in report["faults"].items():
        console.print(f"[red]{found['records']} x {escape(kind)}[/]", highlight=False, soft_wrap=True)
        for record in found["first"][:NAMED]:
            console.print(f"    {record}", highlight=False, soft_wrap=True, markup=False)
    if not report["faults"]:
        console.print("nothing that cannot be used", highlight=False)


def _tell_classes(classes: dict[str, Any], console: Console, most: int = 20) -> None:
    if not classes:
        return
    splits = list(next(iter(classes.values())))
    units = list(next(iter(classes.values()))[splits[0]])
    table = Table("class", *(f"{split} {unit}" for split in splits for unit in units), box=None)
    order = sorted(classes, key=lambda name: -classes[name][splits[0]]["images"])
    for name in order[:most]:
        table.add_row(escape(name), *(f"{classes[name][split][unit]:,}" for split in splits for unit in units))
    console.print(table, highlight=False)
    if len(order) > most:
        console.print(f"and {len(order) - most} classes more, with no more images", highlight=False)


def _pair(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)
