"""What is in a file of weights: a run's network, or one in a system's official layout, translated in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules import Pixels
from exp.pixels import of_a_run, stated_by, stated_in
from models import official
from models.official import LayoutError, State


@dataclass(frozen=True)
class Translation:
    """Weights of an official file, or of ours, in the other layout.

    Args:
        state: Them.
        system: Whose layout it is.
        title: What its layout is called.
        published: Of a student and a teacher, the one that the paper evaluates; None for no such pair.
        pixels: How the images look that they expect; None where nobody says it.
        notes: What else was left out, a phrase each.
    """

    state: State
    system: str
    title: str
    published: str | None = None
    pixels: Pixels | None = None
    notes: tuple[str, ...] = field(default=())


def translated(
    path: Path, checkpoint: Any, system: str | None = None, to: str = "ours", ema: bool = False
) -> Translation:
    """Translates what was read from a file.

    Args:
        path: The file.
        checkpoint: What it holds.
        system: Whose layout; None to recognise it by the key names.
        to: `ours` or `official`.
        ema: Whether to take the averaged weights alone.

    Raises:
        LayoutError: It is in no layout that is known, in several, or not whole.
        WeightFileError: It states pixels that cannot be.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        state = official.unwrap(checkpoint, ema)
        system = system or official.system_of(state, to)
        layout = official.layout_of(system)
        converted = layout.to_ours(state) if to == "ours" else layout.to_official(state)
    # What the file itself says of its images outweighs what is published of the system; a run of ours that says nothing
    # had those of its data.
    pixels = stated_in(path, checkpoint)
    if pixels is None and not of_a_run(checkpoint):
        pixels = stated_by(layout.pixels_of(state if to == "ours" else converted))
    return Translation(
        converted,
        system,
        layout.title,
        layout.published,
        pixels,
        tuple(str(note.message) for note in told),
    )


def averaged_beside(checkpoint: Any, system: str, names: set[str]) -> State | None:
    """The averages of the same weights that an official file has beside them, in our layout; None without.

    Args:
        checkpoint: What the file holds.
        system: Whose layout it is.
        names: Ours of the weights.

    Raises:
        LayoutError: They are not whole.
    """
    with warnings.catch_warnings():
        # They lack what the weights lack, of which has been told.
        warnings.simplefilter("ignore", UserWarning)
        try:
            averaged = official.unwrap(checkpoint, ema=True)
        except LayoutError:
            return None
        layout = official.layout_of(system)
        ours = layout.to_ours(averaged) if layout.matches(averaged) else {}
    return ours if ours.keys() == names else None


def apart_from_its_teacher(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], State | None]:
    """A run's checkpoint, and the weights of the teacher that followed its network.

    Returns:
        The checkpoint without the teacher, and the teacher; the whole one and None where there is none.
    """
    weights = checkpoint["state_dict"]
    teacher = {name.removeprefix("teacher."): each for name, each in weights.items() if name.startswith("teacher.")}
    rest = {name: each for name, each in weights.items() if not name.startswith("teacher.")}
    return {**checkpoint, "state_dict": rest}, teacher or None
