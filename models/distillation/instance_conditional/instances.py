"""Objects as queries: those of the annotations, and others that are not there, for the decoder to tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]
# Bins of widths and of heights: each is twice the one before.
BINS = 5
# What a centre is described by: as many features for each axis.
FEATURES = 128


class Slots(NamedTuple):
    """Slots for the objects of a batch, true ones first in each image.

    Args:
        labels: int64 [N, K].
        boxes: [N, K, 4], x0, y0, x1, y1 relative to the image.
        is_real: bool [N, K], whether the object is there.
        is_empty: bool [N, K], whether there is nothing in the slot.
        most: The largest number of objects of an image, which are in the first slots; None where that is not known.
    """

    labels: Tensor
    boxes: Tensor
    is_real: Tensor
    is_empty: Tensor
    most: int | None = None


class Prior(nn.Module):
    """Where objects that are not there might be: classes as frequent and boxes as large as the annotated ones.

    Args:
        num_classes: Labels.

    Attributes:
        frequency: [num_classes], of each class; uniform until told otherwise.
        mean: [num_classes, 2], mean width and height relative to the image; 0.2 until told otherwise.
        std: Their standard deviation; 0.2 until told otherwise.
    """

    frequency: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("mean", torch.full((num_classes, 2), 0.2))
        self.register_buffer("std", torch.full((num_classes, 2), 0.2))

    def learn(self, labels: Tensor, sizes: Tensor) -> None:
        """Takes the statistics of annotated objects; a class of fewer than two keeps those of all.

        Args:
            labels: int64 [n].
            sizes: [n, 2], width and height relative to the image.
        """
        counts = torch.bincount(labels, minlength=len(self.frequency)).to(self.frequency)
        self.frequency.copy_(counts / counts.sum())
        for label in range(len(self.frequency)):
            own = sizes[labels == label] if counts[label] >= 2 else sizes
            self.mean[label] = own.mean(0)
            self.std[label] = own.std(0, correction=0)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Labels int64 [count] and boxes [count, 4], relative to the image, within it."""
        labels = torch.multinomial(self.frequency, count, replacement=True)
        normal = torch.randn(count, 2, device=self.mean.device)
        uniform = torch.rand(count, 2, device=self.mean.device)
        return labels, boxes_of_draws(self.mean[labels], self.std[labels], normal, uniform).clamp(0, 1)


def boxes_of_draws(mean: Tensor, std: Tensor, normal: Tensor, uniform: Tensor) -> Tensor:
    """Boxes whose sizes are normal, at most two deviations from the mean, their centres within the image.

    Args:
        mean: [n, 2], of width and height relative to the image.
        std: [n, 2].
        normal: [n, 2], standard normal numbers.
        uniform: [n, 2], from 0 to 1.

    Returns:
        [n, 4], x0, y0, x1, y1; they may stand out of the image.
    """
    sizes = (mean + std * normal).minimum(mean + 2 * std).maximum(mean - 2 * std).clamp(2e-3, 0.7)
    centres = uniform.clamp(0.03, 0.97)
    return torch.cat([centres - sizes / 2, centres + sizes / 2], 1)


def num_slots(objects: int, fakes: float, most: int) -> int:
    """Slots of an image with some objects: `fakes` others for each, and one where there is none.

    Args:
        objects: That are there.
        fakes: Others for each of them.
        most: Slots, as long as there are not more objects.
    """
    return min(max(1, int(objects * (fakes + 1))), max(most, objects))


def fill(
    labels: Sequence[Tensor], boxes: Sequence[Tensor], fake_labels: Sequence[Tensor], fake_boxes: Sequence[Tensor]
) -> Slots:
    """Puts objects that are there over the first of those that are not.

    Args:
        labels: int64 [n] of each image.
        boxes: [n, 4] of each, relative to it.
        fake_labels: int64 [k] of each, k >= n.
        fake_boxes: [k, 4] of each.
    """
    most = max(len(each) for each in fake_labels)
    all_labels, all_boxes, is_real, is_empty = [], [], [], []
    for own, where, others, elsewhere in zip(labels, boxes, fake_labels, fake_boxes, strict=True):
        count, spare = len(own), most - len(others)
        all_labels.append(F.pad(torch.cat([own, others[count:]]), (0, spare)))
        all_boxes.append(F.pad(torch.cat([where, elsewhere[count:]]).clamp(0, 1), (0, 0, 0, spare)))
        place = torch.arange(most, device=own.device)
        is_real.append(place < count)
        is_empty.append(place >= len(others))
    return Slots(
        torch.stack(all_labels),
        torch.stack(all_boxes),
        torch.stack(is_real),
        torch.stack(is_empty),
        most=max(map(len, labels)),
    )


class Described(NamedTuple):
    """What the decoder is told of each slot, and what it has to find.

    Args:
        descriptors: [N, K, num_classes + 2 * 128 + 2 * 5].
        distances: [N, K, 4], from the told centre to the sides of the box: left, top, right, bottom.
    """

    descriptors: Tensor
    distances: Tensor


def describe(slots: Slots, jitter: Tensor, sizes: Sequence[Size], num_classes: int, reach: float = 0.3) -> Described:
    """Descriptors: the class, about where the centre is, and about how large the object is; never the box itself.

    Args:
        slots: Of the batch.
        jitter: [N, K, 2], from 0 to 1: how the told centre differs from the true one.
        sizes: Height and width of each image in pixels; bins of an object's size are in pixels.
        num_classes: Labels.
        reach: The most that it differs by, as a share of the box.
    """
    start, end = slots.boxes[..., :2], slots.boxes[..., 2:]
    extent = end - start
    centre = (start + end) / 2 + (jitter - 0.5) * 2 * reach * extent
    pixels = torch.tensor([(width, height) for height, width in sizes], dtype=extent.dtype, device=extent.device)
    side = (extent * pixels[:, None]).clamp(min=1e-12)
    bins = (1.44 * side.log() - 5).clamp(0, BINS - 1).long()
    descriptors = torch.cat(
        [
            F.one_hot(slots.labels, num_classes).to(extent),
            embed(centre).flatten(2),
            F.one_hot(bins, BINS).to(extent).flatten(2) * ~slots.is_empty[..., None],
        ],
        dim=2,
    )
    return Described(descriptors, torch.cat([centre - start, end - centre], 2))


def embed(places: Tensor) -> Tensor:
    """Sines, then cosines, of relative places [..., 2]: [..., 2, 128]."""
    exponents = torch.arange(0, FEATURES, 2, device=places.device, dtype=places.dtype) / FEATURES
    angles = places[..., None] * (2 * math.pi) / 10000**exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Mlp(nn.Sequential):
    """Three linear layers with ReLUs between them.

    Args:
        inputs: Features of the input.
        hidden: Of the two hidden layers.
        outputs: Of the output.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )
