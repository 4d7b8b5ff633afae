"""Skeletons on pictures, as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drawing.figures import IN_CAPTION
from drawing.texts import short

# Of joints by a word in their names.
COLOURS = {"right": "tab:orange", "left": "tab:cyan"}
MIDDLE = "tab:green"
PEOPLE_A_ROW = 4
# How a confident joint and one of no heat at all are drawn.
OPAQUE, FAINT = 1.0, 0.25


@dataclass(frozen=True)
class Skeleton:
    """What to draw of people.

    Args:
        names: Names of the joints, in order.
        bones: Pairs of joints that a line connects.
    """

    names: Sequence[str]
    bones: Sequence[tuple[int, int]]

    def colour(self, *joints: int) -> str:
        """The colour of a joint, or of a line between joints: of its side, if it has one."""
        sides = [COLOURS[side] for side in (_side(self.names[joint]) for joint in joints) if side is not None]
        return sides[0] if sides else MIDDLE

    def draw(self, axes: Axes, joints: np.ndarray, strength: np.ndarray) -> None:
        """Draws one person.

        Args:
            axes: where.
            joints: x, y in pixels, [J,2].
            strength: 0 for joints to leave out, up to 1 for those to draw boldest, [J].
        """
        alpha = np.where(strength > 0, FAINT + (OPAQUE - FAINT) * np.clip(strength, 0, 1), 0)
        for one, other in self.bones:
            ends = joints[[one, other]]
            opacity = float(min(alpha[one], alpha[other]))
            axes.plot(ends[:, 0], ends[:, 1], color=self.colour(one, other), linewidth=1.5, alpha=opacity)
        for joint, (x, y) in enumerate(joints):
            axes.plot(x, y, "o", color=self.colour(joint), markersize=2.5, alpha=float(alpha[joint]))


@dataclass(frozen=True)
class Sighting:
    """One person as annotated and as found.

    Args:
        image: uint8 [H,W,3].
        found: x, y in pixels and score of each joint, [J,3].
        truth: x, y in pixels and 1 where annotated, else 0, [J,3]; None where nothing is known.
        window: left, top, right, bottom of what is shown, in pixels; None for the whole image.
        caption: above it.
    """

    image: np.ndarray
    found: np.ndarray
    truth: np.ndarray | None = None
    window: tuple[float, float, float, float] | None = None
    caption: str = ""

    def of_size(self, size: tuple[int, int]) -> Sighting:
        """The same on a picture that is smaller than the image.

        Args:
            size: height and width of the image, in whose pixels joints and window are.
        """
        if tuple(self.image.shape[:2]) == tuple(size):
            return self
        down, across = (part / whole for part, whole in zip(self.image.shape[:2], size, strict=True))
        truth, window = self.truth, self.window
        if truth is not None:
            truth = truth * [across, down, 1]
        if window is not None:
            window = (window[0] * across, window[1] * down, window[2] * across, window[3] * down)
        return replace(self, found=self.found * [across, down, 1], truth=truth, window=window)


def _side(name: str) -> str | None:
    """The side that a joint's name says it is on."""
    return next((side for side in COLOURS if side in name.lower()), None)


def pose_sheet(people: Sequence[Sighting], skeleton: Skeleton, title: str = "") -> Figure:
    """People with their annotated joints and, to the right of each, those found; the fainter, the less sure.

    Args:
        people: what to draw.
        skeleton: how.
        title: above the figure.
    """
    annotated = any(person.truth is not None for person in people)
    views = 2 if annotated else 1
    columns = min(PEOPLE_A_ROW, max(1, len(people)))
    rows = max(1, math.ceil(len(people) / columns))
    figure = Figure(figsize=(1.9 * columns * views, 2.2 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    for i, person in enumerate(people):
        drawn = [(f"{person.caption}\nfound".strip(), person.found)]
        if person.truth is not None:
            drawn.insert(0, (f"{person.caption}\nannotated".strip(), person.truth))
        for view, (caption, joints) in enumerate(drawn):
            axes = figure.add_subplot(rows, columns * views, i * views + view + 1)
            axes.imshow(person.image, interpolation="nearest" if max(person.image.shape[:2]) < 128 else "antialiased")
            skeleton.draw(axes, joints[:, :2], joints[:, 2])
            left, top, right, bottom = person.window or (0, 0, person.image.shape[1], person.image.shape[0])
            axes.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
            axes.set_title(short(caption, IN_CAPTION), fontsize=8)
            axes.axis("off")
    return figure
