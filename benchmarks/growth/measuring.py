"""Processor time and memory of one piece of work, in a process that does nothing else."""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# What is measured; what it returns is held until its worker processes have been looked at.
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A piece of work whose size is chosen.

    Args:
        what: What is done, for the table.
        sizes: How many, ascending.
        prepare: Size and an empty folder to the work; what it does itself is not measured.
    """

    what: str
    sizes: Sequence[int]
    prepare: Callable[[int, Path], Work]


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Args:
        seconds: Processor time, child processes and loader workers included, but not what workers inherit.
        memory: MiB by which the process grew at its largest.
        workers: MiB that the largest worker process had for itself; 0 for none.
    """

    seconds: float
    memory: float
    workers: float = 0.0

    def __str__(self) -> str:
        shared = f", workers {self.workers:.0f} MiB" if self.workers else ""
        return f"{self.seconds:.2f} s, {self.memory:.0f} MiB{shared}"


def measure(case: Case, size: int, folder: Path) -> Cost:
    """Does the work in this process, which should do nothing else.

    Args:
        case: What to do.
        size: How much of it.
        folder: An empty folder.
    """
    work = case.prepare(size, folder)
    # From now on the kernel keeps the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _status("VmRSS"), sum(os.times()[:4])
    held = work()
    seconds = sum(os.times()[:4]) - started
    # Loader workers are children of a fork server, whose time is that of imports.
    workers = [worker.pid for worker in multiprocessing.active_children() if worker.pid is not None]
    seconds += sum(_processor_time(worker) for worker in workers)
    memory = max(0.0, _status("VmHWM") - before)
    largest = max(map(own_memory, workers), default=0.0)
    del held
    return Cost(seconds, memory, largest)


def measure_alone(case: Case, size: int) -> Cost:
    """The same in a process of its own, forked from this one, so that libraries are imported once.

    Args:
        case: What to do.
        size: How much of it.

    Raises:
        SystemExit: The work failed, which has been said.
    """
    context = multiprocessing.get_context("fork")
    costs = context.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="growth") as folder:
        os.environ["EXP_CACHE"] = f"{folder}/cache"
        process = context.Process(target=lambda: costs.put(measure(case, size, Path(folder))))
        process.start()
        process.join()
    if process.exitcode:
        raise SystemExit(f"{case.what}, {size:,}: failed")
    return costs.get()


def own_memory(process: int) -> float:
    """MiB that a process shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def exponent(sizes: Sequence[int], values: Sequence[float], least: float) -> str:
    """The power of the size that the last two values grow with: 1 is linear, 0 constant.

    Args:
        sizes: How many.
        values: What it took.
        least: Below it a value is noise, from which no power is told.
    """
    (few, many), (before, after) = sizes[-2:], values[-2:]
    return f"^{math.log(after / before) / math.log(many / few):.1f}" if min(before, after) >= least else "too little"


def _processor_time(process: int) -> float:
    # What follows the name, which may have spaces: user and system time are the 12th and the 13th.
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return math.nan
