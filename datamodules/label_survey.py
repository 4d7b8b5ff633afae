"""All label files of a split, looked through once: which classes are in them, and what is wrong with them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from datamodules.cache import write_once
from datamodules.errors import DataError
from datamodules.finding import shown
from datamodules.label_maps import VOID, Colour
from datamodules.masks import EncodedMask

# Reading and decoding release Python's lock.
THREADS = 8
CHUNK = 64
BAND = 1 << 20
MAX_PROBLEMS = 1000
LAYOUT = "label-survey-1"


@dataclass
class LabelSurvey:
    """What the label files of a split hold.

    Attributes:
        pixels: Pixels of each train id, int64 [256]; the last is void.
        images: Label files with each train id, int64 [256].
        void_by_rule: Pixels of value 255, where it is neither a class nor named as void.
        problems: Position and reason of the first thousand label files that cannot be used.
        num_problems: How many cannot be used.
        colours: RGB of each value in the palettes of the files, as the first file with the value has it.
        clash: A value that two palettes show in different colours, and the positions of these files.
        looked: Files that were looked at.
    """

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(VOID + 1, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(VOID + 1, np.int64))
    void_by_rule: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    num_problems: int = 0
    colours: dict[int, Colour] = field(default_factory=dict)
    clash: tuple[int, int, int] | None = None
    looked: int = 0


class _Late(Exception):
    """Time is up."""


def survey(masks: Sequence[EncodedMask], seconds: float | None = None) -> LabelSurvey:
    """Looks through label files, of one label map; what all of them together say is kept in the cache.

    Args:
        masks: The label files, at least one.
        seconds: After so long, what was seen so far, of files from all over the list, has to do; None for all of them.

    Raises:
        DataError: If the cache cannot be written.
    """
    found = LabelSurvey()
    end = None if seconds is None else time.monotonic() + seconds

    def write(folder: Path) -> None:
        _look(masks, found, lambda: end is not None and time.monotonic() > end)
        np.save(folder / "pixels.npy", found.pixels)
        np.save(folder / "images.npy", found.images)
        rest = {name: value for name, value in vars(found).items() if name not in ("pixels", "images")}
        (folder / "survey.json").write_text(json.dumps(rest))

    key = f"{LAYOUT} {masks[0].labels!r}\n" + "".join(map(_identity, masks))
    try:
        folder = write_once("label-survey", key, write, str(masks[0].path))
    except _Late:
        return found
    rest: dict[str, Any] = json.loads((folder / "survey.json").read_text())
    rest["problems"] = [(position, reason) for position, reason in rest["problems"]]
    rest["colours"] = {int(value): tuple(colour) for value, colour in rest["colours"].items()}
    pixels, images = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("pixels", "images"))
    return LabelSurvey(pixels, images, **rest)


def _identity(mask: EncodedMask) -> str:
    """Path, size and time of a file; of tens of thousands of them, no more is asked."""
    try:
        status = mask.path.stat()
    except OSError:
        return f"{shown(mask.path)}\n"
    return f"{shown(mask.path.absolute())}|{status.st_size}|{status.st_mtime_ns}\n"


def _look(masks: Sequence[EncodedMask], found: LabelSurvey, late: Callable[[], bool]) -> None:
    """Adds all files to what was found; raises ``_Late`` if there is no time for all."""
    owners: dict[int, int] = {}
    # By the reversed bits of their positions, the first files of this order are from all over the list.
    order = sorted(range(len(masks)), key=lambda i: f"{i:032b}"[::-1])
    with ThreadPoolExecutor(THREADS) as threads, Progress(transient=True) as progress:
        for start in progress.track(range(0, len(order), CHUNK), description="Looking through the label files"):
            chunk = order[start : start + CHUNK]
            for position, seen in zip(chunk, threads.map(lambda i: _seen(masks[i]), chunk), strict=True):
                _add(found, owners, position, seen)
            if late() and found.looked < len(masks):
                raise _Late
    found.problems.sort()


def _seen(mask: EncodedMask) -> tuple[np.ndarray, int, dict[int, Colour]] | str:
    """Pixels of each train id, pixels of value 255 and the palette's colours of the values; or what is wrong."""
    try:
        values, palette = mask.read()
        pixels = _histogram(mask.labels.train_ids(values))
    except DataError as problem:
        return f"label file {mask.path}: {problem}"
    if values.ndim == 3:
        return pixels, 0, {}
    colours: dict[int, Colour] = {}
    if palette is not None:
        held = np.flatnonzero(_histogram(values)).tolist()
        listed = list(zip(*[iter(palette)] * 3, strict=False))
        colours = {value: listed[value] for value in held if value < len(listed)}
    unnamed = VOID not in mask.labels.ids and VOID not in mask.labels.void_ids
    return pixels, int((values == VOID).sum()) if unnamed else 0, colours


def _histogram(values: np.ndarray) -> np.ndarray:
    # NumPy counts eight bytes a pixel, which is much for all of them at once.
    flat = values.reshape(-1)
    return sum(
        (np.bincount(flat[start : start + BAND], minlength=VOID + 1) for start in range(0, len(flat), BAND)),
        np.zeros(VOID + 1, np.int64),
    )


def _add(
    found: LabelSurvey, owners: dict[int, int], position: int, seen: tuple[np.ndarray, int, dict[int, Colour]] | str
) -> None:
    found.looked += 1
    if isinstance(seen, str):
        found.num_problems += 1
        if len(found.problems) < MAX_PROBLEMS:
            found.problems.append((position, seen))
        return
    pixels, void, colours = seen
    found.pixels += pixels
    found.images += pixels > 0
    found.void_by_rule += void
    for value, colour in colours.items():
        if found.colours.setdefault(value, colour) != colour and found.clash is None:
            found.clash = value, owners[value], position
        owners.setdefault(value, position)
