"""Where a benchmark runs, and the time that work takes there."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--device`, by default the CPU.

    Args:
        parser: Of a benchmark.
    """
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="such as cuda (default: cpu)")


def wait(device: torch.device) -> None:
    """Returns once all that was asked of a device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of some work, after one time that does not count: processor time on a CPU, else time until done.

    Args:
        work: What to do.
        device: Where it is done.
        repeats: Times that count.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        wait(device)
        started = clock()
        work()
        wait(device)
        times.append(clock() - started)
    return statistics.median(times[1:]) * 1e3
