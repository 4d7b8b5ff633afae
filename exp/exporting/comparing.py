"""A network and its file on the same images: how far they differ, and how long each takes."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou

from exp.exporting.graph import Portable
from lightning_modules.exporting import Answer
from models.mistakes import Mistake

# The largest relative difference that is float noise, and the largest that may be where a network makes more of it.
TOLERANCE, LARGEST_NOISE = 1e-3, 1e-2
# Outputs that together say a set of objects for each image: which of them comes first is not part of the answer.
SET = ("boxes", "labels", "scores")
# Overlap (IoU) of boxes of one label that can be of one object.
SAME = 0.9
# Two that round in different ways differ by what both of them are off.
ROUNDED_TWICE = 2
MIN_RUNS, SECONDS = 5, 1.0


def compare(
    network: Callable[[Tensor], Answer], file: Callable[[Tensor], Answer], batches: Iterable[Tensor]
) -> dict[str, float]:
    """The largest difference of each output over some batches, over its largest value.

    Of outputs that are no fractions, such as classes and masks, it is the share of the values that differ. Objects are
    compared with their partners: those of one label that overlap most, one to one. Under `labels` is the share of the
    objects of either side that have none.

    Args:
        network: the network.
        file: what is compared with it.
        batches: images [B, 3, H, W], RGB from 0 to 255.

    Raises:
        Mistake: outputs of another shape; the number of objects may be another.
    """
    differences: dict[str, float] = {}
    for images in batches:
        with torch.no_grad():
            wanted = network(images)
        found = file(images)
        if all(name in wanted for name in SET):
            compared = _set_differences(found, wanted)
        else:
            compared = {name: _difference(_of_shape(name, found[name], wanted[name]), wanted[name]) for name in wanted}
        for name, difference in compared.items():
            differences[name] = max(differences.get(name, 0.0), difference)
    return differences


def _of_shape(name: str, got: Tensor, expected: Tensor) -> Tensor:
    if got.shape != expected.shape:
        raise Mistake(
            f"the file's {name} is of shape {list(got.shape)}, and the network's of {list(expected.shape)} for the "
            "same images"
        )
    return got


def _set_differences(found: Answer, wanted: Answer) -> dict[str, float]:
    """Differences of two sets of objects for each image."""
    differences = dict.fromkeys(wanted, 0.0)
    alone, objects = 0, 0
    for i in range(len(wanted["boxes"])):
        got, expected = ({name: each[i] for name, each in answer.items()} for answer in (found, wanted))
        mine, theirs = _partners(got, expected)
        numbers = len(got["labels"]) + len(expected["labels"])
        objects, alone = objects + numbers, alone + numbers - 2 * len(mine)
        for name in wanted.keys() - {"labels"}:
            difference = _difference(_of_shape(name, got[name][mine], expected[name][theirs]), expected[name][theirs])
            differences[name] = max(differences[name], difference)
    return differences | {"labels": alone / max(1, objects)}


def _partners(found: Answer, wanted: Answer) -> tuple[Tensor, Tensor]:
    """Indices [n] of objects of one image and of their partners."""
    overlaps = box_iou(found["boxes"].double(), wanted["boxes"].double())
    overlaps = overlaps.nan_to_num(nan=0.0)
    # Boxes without an area overlap nothing, themselves included.
    far = (found["boxes"][:, None].double() - wanted["boxes"].double()).abs().amax(-1)
    near = far <= TOLERANCE * wanted["boxes"].double().abs().amax() if far.numel() else far.bool()
    overlaps = torch.where(near, overlaps.clamp(min=SAME), overlaps)
    possible = (found["labels"][:, None] == wanted["labels"]) & (overlaps >= SAME)
    # Of several at one place, those of like scores.
    apart = (found["scores"][:, None].double() - wanted["scores"].double()).abs().nan_to_num(nan=1.0)
    costs = torch.where(possible, (1 - overlaps) + apart, 2.0 * (1 + len(overlaps)))
    mine, theirs = map(torch.from_numpy, linear_sum_assignment(costs.numpy()))
    kept = possible[mine, theirs]
    return mine[kept], theirs[kept]


def tolerances(module: Portable, batches: Iterable[Tensor], differences: Mapping[str, float]) -> dict[str, float]:
    """The largest difference of each output that is float noise.

    That is `TOLERANCE`, unless rounding alone changes the network's answer by more: then it is twice the difference
    between its answers in single and in double precision, within `LARGEST_NOISE`.

    Args:
        module: the network; it is asked in double precision only if one of the differences is above `TOLERANCE`.
        batches: images [B, 3, H, W], RGB from 0 to 255.
        differences: of its outputs, by name.
    """
    own: dict[str, float] = {}
    if not all(difference <= TOLERANCE for difference in differences.values()):
        exact = copy.deepcopy(module).double()
        # Of a network that cannot be asked in double precision, nothing is known.
        with suppress(RuntimeError, TypeError, ValueError):
            own = compare(lambda images: exact.answer(images.double()), module.answer, batches)
    return {name: max(TOLERANCE, min(LARGEST_NOISE, ROUNDED_TWICE * own.get(name, 0.0))) for name in differences}


def _difference(got: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return (got != expected).double().mean().item()
    difference = (got.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-12)
    # What is not a number in one of them alone is a difference.
    return difference.nan_to_num(nan=torch.inf).item()


def latency(ask: Callable[[Tensor], Answer], image: Tensor) -> float:
    """Seconds for one image [1, 3, H, W], the median of some runs after one that does not count."""
    measured: list[float] = []
    with torch.no_grad():
        ask(image)
        while len(measured) < MIN_RUNS or sum(measured) < SECONDS:
            start = time.perf_counter()
            ask(image)
            measured.append(time.perf_counter() - start)
    return statistics.median(measured)
