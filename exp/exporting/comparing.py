"""A network and its file on the same images: how far they differ, and how long each takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_modules.exporting import Answer
from models.mistakes import Mistake

# The largest relative difference that is float noise.
TOLERANCE = 1e-3
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
