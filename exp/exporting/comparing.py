"""A network and its file on the same images: how far they differ, and how long each takes."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from exp.exporting.graph import Portable
from lightning_modules.exporting import Answer
from models.mistakes import Mistake

# The largest relative difference that is float noise, and the largest that may be where a network makes more of it.
TOLERANCE, LARGEST_NOISE = 1e-3, 1e-2
# Two that round in different ways differ by what both of them are off.
ROUNDED_TWICE = 2
MIN_RUNS, SECONDS = 5, 1.0


def compare(
    network: Callable[[Tensor], Answer], file: Callable[[Tensor], Answer], batches: Iterable[Tensor]
) -> dict[str, float]:
    """The largest difference of each output over some batches, over its largest value.

    Of outputs that are no fractions, such as labels and masks, it is the share of the values that differ.

    Args:
        network: the network.
        file: what is compared with it.
        batches: images [B, 3, H, W], RGB from 0 to 255.

    Raises:
        Mistake: outputs of another shape.
    """
    differences: dict[str, float] = {}
    for images in batches:
        with torch.no_grad():
            wanted = network(images)
        found = file(images)
        for name, expected in wanted.items():
            got = found[name]
            if got.shape != expected.shape:
                raise Mistake(
                    f"the file's {name} is of shape {list(got.shape)} for images {list(images.shape)}, the network's "
                    f"of {list(expected.shape)}"
                )
            differences[name] = max(differences.get(name, 0.0), _difference(got, expected))
    return differences


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
