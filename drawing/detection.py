"""Pictures of what detectors find, and of where they look, as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from drawing.figures import IN_CAPTION
from drawing.texts import short

MASK_OPACITY = 0.45
MOST_BARS = 40
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Objects:
    """Objects of one image, in its pixels.

    Args:
        boxes: [n, 4], x0 y0 x1 y1.
        labels: [n].
        scores: [n], descending; None for annotations.
        masks: bool [n, H, W]; None where there are none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None

    def drawn_on(self, image: np.ndarray, size: tuple[int, int]) -> Objects:
        """The same objects in the pixels of a picture of the image, which may be smaller than the image.

        Args:
            image: the picture [h, w, 3].
            size: height and width of the image, in whose pixels these are.
        """
        if tuple(image.shape[:2]) == tuple(size):
            return self
        down, across = (part / whole for part, whole in zip(image.shape[:2], size, strict=True))
        masks = None if self.masks is None else shrunk(self.masks, image.shape)
        return replace(self, boxes=self.boxes * [across, down, across, down], masks=masks)


def shrunk(masks: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Masks [n, H, W] at the height and width of a picture."""
    rows, columns = (np.arange(part) * whole // part for part, whole in zip(shape[:2], masks.shape[1:], strict=True))
    return masks[:, rows[:, None], columns]


def overlay(image: np.ndarray, objects: Objects, names: Sequence[str], title: str = "") -> Figure:
    """One image under boxes, masks, labels and scores.

    Args:
        image: uint8 [H, W, 3].
        objects: in its pixels.
        names: class names, by label.
        title: above the figure.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=_inches(height, width, 7.0), layout="constrained")
    figure.suptitle(title, fontsize=9)
    _draw(figure.add_subplot(), image, objects, names, fontsize=8)
    return figure


def comparison_sheet(
    images: Sequence[np.ndarray],
    truth: Sequence[Objects],
    found: Sequence[Objects],
    names: Sequence[str],
    files: Sequence[str],
    title: str = "",
) -> Figure:
    """Each image twice: what is there, and beside it what was found.

    Args:
        images: uint8 [H, W, 3] each, of any sizes; at least one.
        truth: annotations of each.
        found: predictions for each.
        names: class names, by label.
        files: what each image is called.
        title: above the figure.
    """
    columns = min(3, math.ceil(math.sqrt(len(images) / 2)))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(5.2 * columns, 2.8 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    for i, image in enumerate(images):
        name = short(files[i], IN_CAPTION - 10)
        for j, (objects, heading) in enumerate(((truth[i], f"{name}, annotated"), (found[i], "found"))):
            axes = figure.add_subplot(rows, 2 * columns, 2 * i + j + 1)
            _draw(axes, image, objects, names, fontsize=6)
            axes.set_title(f"{heading}: {len(objects.boxes)}", fontsize=8)
    return figure


def detection_sheet(
    images: Sequence[np.ndarray], found: Sequence[Objects], names: Sequence[str], captions: Sequence[str], title: str
) -> Figure:
    """Small pictures in rows, each under what was found in it.

    Args:
        images: uint8 [H, W, 3] each, of any sizes; at least one.
        found: predictions for each.
        names: class names, by label.
        captions: one for each image.
        title: above the figure.
    """
    columns = min(5, math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.8 * columns, 3.0 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    for i, (image, objects, caption) in enumerate(zip(images, found, captions, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        _draw(axes, image, objects, names, fontsize=6)
        axes.set_title(short(caption, IN_CAPTION), fontsize=8)
    return figure


def category_bars(
    names: Sequence[str], precision: Mapping[Any, np.ndarray], objects: np.ndarray, title: str = ""
) -> Figure:
    """Average precision of every category that has objects, best first.

    Args:
        names: names of the K categories.
        precision: kind (box, mask) -> AP of each category [K].
        objects: annotated objects of each category [K].
        title: above the figure.
    """
    first = next(iter(precision.values()))
    order = [int(k) for k in np.argsort(-first, kind="stable") if objects[k]]
    if len(order) > MOST_BARS:
        title += f", the {MOST_BARS // 2} best and worst of {len(order)} categories"
        order = order[: MOST_BARS // 2] + order[-MOST_BARS // 2 :]
    figure = Figure(figsize=(6.5, 0.24 * max(4, len(order)) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(order))
    thickness = 0.8 / len(precision)
    for i, (kind, values) in enumerate(precision.items()):
        axes.barh(places + (i - (len(precision) - 1) / 2) * thickness, values[order], thickness, label=kind)
    axes.set_yticks(places, [f"{names[k]} ({objects[k]})" for k in order], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="average precision", title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    return figure


def precision_recall(curves: Mapping[Any, np.ndarray], title: str = "") -> Figure:
    """Precision against recall, one panel per kind, at IoU 0.5, 0.75 and over all thresholds.

    Args:
        curves: kind (box, mask) -> precision at 10 IoU thresholds from 0.5 to 0.95 and 101 recalls [10, 101].
        title: above the figure.
    """
    figure = Figure(figsize=(4.4 * len(curves), 3.8), layout="constrained")
    figure.suptitle(title)
    recall = np.linspace(0, 1, 101)
    for i, (kind, precision) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), i + 1)
        for name, values in (
            ("IoU 0.5", precision[0]),
            ("IoU 0.75", precision[5]),
            ("IoU 0.5 to 0.95", precision.mean(0)),
        ):
            axes.plot(recall, values, label=f"{name}: {values.mean():.3f}", linewidth=1.3)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=kind)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return figure


def sampling_points(
    image: np.ndarray, points: np.ndarray, weights: np.ndarray, objects: Objects, names: Sequence[str], title: str = ""
) -> Figure:
    """Where a query of deformable attention samples, one panel per decoder layer.

    Args:
        image: uint8 [H, W, 3].
        points: [layers, n, 2], x and y in the image's pixels.
        weights: [layers, n] of the attention; a point's area and colour show it.
        objects: what the query found, at most one.
        names: class names, by label.
        title: above the figure.
    """
    height, width = image.shape[:2]
    panels = len(points)
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    across, down = _inches(height, width, 3.6)
    figure = Figure(figsize=(across * columns, down * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for layer in range(panels):
        axes = figure.add_subplot(rows, columns, layer + 1)
        _draw(axes, image, objects, names, fontsize=7)
        share = weights[layer] / max(float(weights[layer].max()), 1e-9)
        x, y = points[layer].T
        axes.scatter(x, y, s=4 + 40 * share, c=share, cmap="autumn_r", edgecolors="black", linewidths=0.3, zorder=5)
        axes.set(title=f"decoder layer {layer + 1}", xlim=(0, width), ylim=(height, 0))
        axes.title.set_fontsize(8)
    return figure


def attention_maps(
    image: np.ndarray, maps: np.ndarray, objects: Objects, names: Sequence[str], title: str = ""
) -> Figure:
    """Where a query of dense attention looks, one panel per decoder layer.

    Args:
        image: uint8 [H, W, 3].
        maps: [layers, h, w], attention of the query to each cell of the image.
        objects: what the query found, at most one.
        names: class names, by label.
        title: above the figure.
    """
    height, width = image.shape[:2]
    columns = min(3, len(maps))
    rows = math.ceil(len(maps) / columns)
    across, down = _inches(height, width, 3.6)
    figure = Figure(figsize=(across * columns, down * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for layer, attention in enumerate(maps):
        axes = figure.add_subplot(rows, columns, layer + 1)
        _draw(axes, image.mean(2).repeat(3).reshape(image.shape).astype(np.uint8), objects, names, fontsize=7)
        axes.imshow(attention, cmap="inferno", alpha=0.6, interpolation="bilinear", extent=(0, width, height, 0))
        axes.set_title(f"decoder layer {layer + 1}", fontsize=8)
    return figure


def instance_masks(
    rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float], Sequence[str]]], title: str = ""
) -> Figure:
    """Images with boxes, and beside each of them where something looked for each of its objects, over the same image.

    Args:
        rows: of each image the picture uint8 [H, W, 3], boxes [n, 4] in its pixels, weights [n, h, w], width and height
            in its pixels of what the weights lie on from its upper left corner, and the name of each object.
        title: above the figure.
    """
    columns = 1 + max(len(row[1]) for row in rows)
    figure = Figure(figsize=(2.1 * columns, 2.2 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for place, (image, boxes, weights, (width, height), names) in enumerate(rows):
        shape = image.shape[:2]
        grey = image.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
        colours = label_colours(np.arange(len(boxes)))
        for column in range(1 + len(boxes)):
            axes = figure.add_subplot(len(rows), columns, place * columns + column + 1)
            axes.imshow(grey if column else image, interpolation="antialiased", extent=(0, shape[1], shape[0], 0))
            if column:
                axes.imshow(weights[column - 1], cmap="inferno", alpha=0.65, extent=(0, width, height, 0))
            for i in [column - 1] if column else range(len(boxes)):
                x0, y0, x1, y1 = boxes[i]
                edge = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colours[i], linewidth=1.4)
                axes.add_patch(edge)
            axes.set(xlim=(0, shape[1]), ylim=(shape[0], 0))
            axes.set_title(short(names[column - 1], IN_CAPTION) if column else "annotated", fontsize=8)
            axes.axis("off")
    return figure


def label_colours(labels: np.ndarray) -> np.ndarray:
    """A colour for each label, RGB [n, 3] from 0 to 1: twenty that are far apart, then hues by the golden ratio."""
    labels = np.asarray(labels, np.int64)
    near = matplotlib.colormaps["tab20"](labels * 2 % 20 + labels // 10 % 2)[:, :3]
    # Steps of the golden ratio never come back to a hue; lightness tells those apart that come near.
    hues = np.stack([labels * GOLDEN % 1, 0.55 + 0.15 * (labels % 4), 0.95 - 0.2 * (labels % 3)], 1)
    return np.where((labels < 20)[:, None], near, hsv_to_rgb(hues))


def _draw(axes: Axes, image: np.ndarray, objects: Objects, names: Sequence[str], fontsize: float) -> None:
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    interpolation = "nearest" if max(height, width) <= 128 else "antialiased"
    axes.imshow(image, interpolation=interpolation, extent=extent)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    colours = label_colours(objects.labels)
    if objects.masks is not None and len(objects.masks):
        layer = np.zeros((height, width, 4))
        # The surest last, so that they lie on top.
        for mask, colour in zip(objects.masks[::-1], colours[::-1], strict=True):
            layer[mask] = [*colour, MASK_OPACITY]
        axes.imshow(layer, interpolation="nearest", extent=extent)
    for i in range(len(objects.boxes) - 1, -1, -1):
        x0, y0, x1, y1 = objects.boxes[i].clip(0, [width, height, width, height])
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colours[i], linewidth=1.2))
        text = short(names[int(objects.labels[i])], IN_CAPTION)
        if objects.scores is not None:
            text += f" {objects.scores[i]:.2f}"
        axes.text(
            *(x0, y0, text),
            fontsize=fontsize,
            color="black" if colours[i].mean() > 0.55 else "white",
            verticalalignment="bottom" if y0 > 0.08 * height else "top",
            clip_on=True,
            bbox={"facecolor": colours[i], "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )


def _inches(height: int, width: int, longer: float) -> tuple[float, float]:
    scale = longer / max(height, width)
    return max(1.6, width * scale), max(1.6, height * scale)
