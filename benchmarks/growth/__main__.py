"""How processor time and memory grow: images, classes, objects, sides, exits, processes, runs and cells.

    python -m benchmarks.growth                      # all of it, a quarter of an hour
    python -m benchmarks.growth --axis runs          # one axis
    python -m benchmarks.growth --axis images --most 10000

Each row is one piece of work at rising sizes, every size in a process of its own on one thread: processor time
with that of child processes and loader workers, the MiB by which the process grew at its largest, and what the largest
worker has for itself. The powers at the end say how time and memory grew between the last two sizes: 1 is linear, 0
constant. With workers, every size waits for a fork server's imports of about 7 s of processor time, which are not
counted: minutes on a busy machine. Needs Linux.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

import torch

from benchmarks.growth.measuring import Case, exponent, measure_alone

# Where the cases of an axis are.
AXES = {
    "images": "benchmarks.growth.images",
    "classes": "benchmarks.growth.evaluation",
    "objects": "benchmarks.growth.evaluation",
    "side": "benchmarks.growth.networks",
    "exits": "benchmarks.growth.networks",
    "processes": "benchmarks.growth.runs",
    "runs": "benchmarks.growth.runs",
    "cells": "benchmarks.growth.runs",
}

# Seconds and MiB from which growth is told.
LEAST = (("seconds", 0.05), ("memory", 4.0))


def cases(axis: str) -> Sequence[Case]:
    """The pieces of work of an axis."""
    return importlib.import_module(AXES[axis]).CASES[axis]


def report(axis: str, most: int | None) -> None:
    """Prints the rows of an axis."""
    for case in cases(axis):
        sizes = [size for size in case.sizes if most is None or size <= most]
        costs = []
        for size in sizes:
            costs.append(measure_alone(case, size))
            print(f"{axis:>9} | {case.what} | {size:,}: {costs[-1]}", flush=True)
        if len(sizes) > 1:
            times, memory = (exponent(sizes, [getattr(cost, part) for cost in costs], least) for part, least in LEAST)
            print(f"{axis:>9} | {case.what} | time {times}, memory {memory}", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=list(AXES), nargs="+", default=list(AXES), help="default: all of them")
    parser.add_argument("--most", type=int, help="leaves out larger sizes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for axis in options.axis:
        report(axis, options.most)


if __name__ == "__main__":
    main()
