"""Pictures of a data set, before anything is trained: how much there is of what, of which sizes, and how it looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from drawing.detection import Objects, draw
from drawing.figures import IN_CAPTION
from drawing.poses import Skeleton
from drawing.segmentation import blended
from drawing.texts import short

MOST_CLASSES = 60


@dataclass(frozen=True)
class Sample:
    """One sample with what it is labelled with, in pixels of its image.

    Args:
        image: uint8 [H,W,3].
        caption: Above it.
        objects: Boxes, labels and masks; None without.
        pixels: Class of each pixel, uint8 [h,w]; None without.
        palette: RGB of each of these classes.
        joints: x, y and 1 where annotated, else 0, [people,J,3]; None without.
        bones: Pairs of joints that a line connects.
    """

    image: np.ndarray
    caption: str = ""
    objects: Objects | None = None
    pixels: np.ndarray | None = None
    palette: np.ndarray | None = None
    joints: np.ndarray | None = None
    bones: Sequence[tuple[int, int]] = ()


def sample_sheet(samples: Sequence[Sample], names: Sequence[str], title: str = "") -> Figure:
    """Samples in rows, with what they are labelled with drawn on them.

    Args:
        samples: at least one.
        names: class names, by label; of joints, their names.
        title: above the figure.
    """
    columns = min(5, math.ceil(math.sqrt(len(samples))))
    rows = math.ceil(len(samples) / columns)
    figure = Figure(figsize=(2.7 * columns, 2.6 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    for i, sample in enumerate(samples):
        axes = figure.add_subplot(rows, columns, i + 1)
        image = sample.image
        if sample.pixels is not None and sample.palette is not None:
            image = blended(image, sample.pixels, sample.palette)
        if sample.objects is not None:
            draw(axes, image, sample.objects, names, fontsize=6)
        else:
            axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 64 else "antialiased")
        if sample.joints is not None:
            skeleton = Skeleton(names, sample.bones)
            for joints in sample.joints:
                skeleton.draw(axes, joints[:, :2], joints[:, 2] > 0)
        axes.set_title(short(sample.caption, IN_CAPTION), fontsize=8)
        axes.axis("off")
    return figure


def class_balance(names: Sequence[str], counts: Mapping[str, Mapping[str, np.ndarray]], title: str = "") -> Figure:
    """Bars of how much there is of each class, most first, a panel for each thing that is counted.

    Args:
        names: of the K classes.
        counts: what is counted (images, objects) -> split -> how many of each class [K].
        title: above the figure.
    """
    order = [
        int(k) for k in np.argsort(-sum(next(iter(counts.values())).values(), np.zeros(len(names))), kind="stable")
    ]
    if len(order) > MOST_CLASSES:
        title += f", the {MOST_CLASSES // 2} most and least frequent of {len(names)} classes"
        order = order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]
    figure = Figure(figsize=(5.0 * len(counts) + 1, 0.22 * max(8, len(order)) + 1.2), layout="constrained")
    figure.suptitle(title)
    places = np.arange(len(order))
    for i, (what, splits) in enumerate(counts.items()):
        axes = figure.add_subplot(1, len(counts), i + 1)
        thickness = 0.8 / len(splits)
        for j, (split, values) in enumerate(splits.items()):
            axes.barh(places + (j - (len(splits) - 1) / 2) * thickness, values[order], thickness, label=split)
        axes.set_yticks(places, [short(names[k], IN_CAPTION) for k in order], fontsize=7)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set(xlabel=what)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return figure


def size_scatter(sizes: Mapping[str, Mapping[str, np.ndarray]], title: str = "") -> Figure:
    """Widths and heights, a panel for each kind of thing.

    Args:
        sizes: what has sizes (images, boxes) -> split -> width and height in pixels [n,2].
        title: above the figure.
    """
    figure = Figure(figsize=(4.6 * len(sizes), 4.4), layout="constrained")
    figure.suptitle(title)
    for i, (what, splits) in enumerate(sizes.items()):
        axes = figure.add_subplot(1, len(sizes), i + 1)
        for split, values in splits.items():
            axes.scatter(values[:, 0], values[:, 1], s=8, alpha=0.4, linewidths=0, label=f"{split}: {len(values):,}")
        axes.set(xlabel="width in pixels", ylabel="height in pixels", title=what, xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return figure
