"""How long architectures take on this machine: a table of measured pieces, and how well it tells the whole."""

from __future__ import annotations

import fcntl
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.whole_files import write_whole
from exp.profile import latencies
from exp.searching.machine import machine
from exp.usage import UsageError
from models.supernet import Architecture, Divisible, Searchable

# Rounds over everything that is measured, as the machine may have other work meanwhile, and seconds of each in one.
_ROUNDS, _SECONDS = 5, 0.05
# Architectures whose pieces are measured before a search; what comes up later is measured then.
_LOOKED_AT = 64
# Whole networks that the table is fitted to, and others that it is judged on.
_FITTED, _JUDGED = 6, 6


class Latency:
    """What architectures take, in milliseconds for one image: a + b times the sum over their pieces.

    The pieces are measured one by one; a and b, which stand for what is between them, are fitted to whole networks.
    Whole networks that took no part in that tell the error. What has been measured is kept in a file.

    Args:
        network: Has the pieces.
        images: Examples, [N, C, H, W]; a network takes them one by one.
        file: The table.

    Raises:
        UsageError: A network without pieces, or a table that another machine has measured, or of another network.
    """

    def __init__(self, network: Searchable, images: Tensor, file: Path) -> None:
        if not isinstance(network, Divisible):
            raise UsageError(
                f"--limit latency_ms: {type(network).__name__} does not say of which pieces it consists "
                "(CONTRIBUTING.md, `choices`); limit multiply_adds instead"
            )
        self._network, self._images, self._file = network, images, file
        self.facts: dict[str, Any] = {}
        here = machine(images.device) | {"image": list(images.shape[1:])}
        if file.exists():
            self.facts = _read(file)
            told = self.facts["machine"]
            if other := [
                f"{name} {told.get(name)}, not {value}" for name, value in here.items() if told.get(name) != value
            ]:
                raise UsageError(
                    f"{file}: this table of latencies was measured elsewhere ({'; '.join(other)}): remove it to "
                    "measure anew, or search there"
                )
        else:
            self._measure(here)

    def __call__(self, architecture: Architecture) -> float:
        """Milliseconds that an architecture takes for an image, by the table."""
        return self.facts["offset"] + self.facts["factor"] * self._sum(architecture)

    def sentence(self) -> str:
        """How many pieces there are, and how well their sum tells what whole networks take."""
        facts = self.facts
        return (
            f"latency by {len(facts['pieces'])} measured pieces on {facts['machine']['chip']}, "
            f"{facts['machine']['threads']} threads: off by {facts['error']:.1%} (median of {facts['judged']} other "
            f"networks, {facts['worst']:.1%} at worst)"
        )

    def _sum(self, architecture: Architecture) -> float:
        network = self._network
        assert isinstance(network, Divisible)
        counts = network.pieces(architecture)
        if any(name not in self.facts["pieces"] for name in counts):
            self._add(list(counts))
        return sum(count * self.facts["pieces"][name] for name, count in counts.items())

    def _measure(self, here: dict[str, Any]) -> None:
        """Measures the pieces of many architectures, and whole networks."""
        random, space = Random(0), self._network.space
        drawn = [space.smallest(), space.largest(), *(space.draw(random) for _ in range(_LOOKED_AT))]
        whole = list(dict.fromkeys(drawn))[: _FITTED + _JUDGED]
        assert isinstance(self._network, Divisible)
        names = list(dict.fromkeys(name for each in drawn for name in self._network.pieces(each)))
        with torch.no_grad():
            # Together, so that other work on the machine slows all of them alike.
            runs = {name: self._timed(name) for name in names} | {each: self._timed(each) for each in whole}
            times = _milliseconds(runs)
        self.facts = {"machine": here, "pieces": {name: times[name] for name in names}}
        sums, seen = [self._sum(each) for each in whole], [times[each] for each in whole]
        fitted = max(2, len(whole) // 2)
        self.facts["offset"], self.facts["factor"] = _line(sums[:fitted], seen[:fitted])
        # A space may have no more architectures than are needed to fit the line.
        judged = list(range(fitted, len(whole))) or list(range(len(whole)))
        errors = [abs(self(whole[i]) - seen[i]) / seen[i] for i in judged]
        self.facts |= {"judged": len(judged), "error": statistics.median(errors), "worst": max(errors)}
        write_whole(self._file, json.dumps(self.facts, indent=1) + "\n")

    def _add(self, names: list[str]) -> None:
        """Measures what the table lacks, once for all processes that use it."""
        with self._file.with_suffix(".lock").open("a") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            known = _read(self._file)["pieces"] if self._file.exists() else {}
            self.facts["pieces"] |= known
            with torch.no_grad():
                missing = {name: self._timed(name) for name in names if name not in self.facts["pieces"]}
                self.facts["pieces"] |= _milliseconds(missing)
            write_whole(self._file, json.dumps(self.facts, indent=1) + "\n")

    def _timed(self, what: str | Architecture) -> Callable[[], list[float]]:
        """Measures a piece, or a whole network image by image: seconds, to be compared from round to round."""
        first = self._images[:1]
        if isinstance(what, str):
            assert isinstance(self._network, Divisible)
            call, inputs = self._network.piece(what, first)
            return lambda: [min(latencies(call, inputs, first.device, _SECONDS, clock=_clock(first.device)))]
        network = self._network.extracted(what).eval()
        return lambda: [min(_several(network, image, first.device)) for image in self._images.split(1)]


def _several(network: nn.Module, image: Tensor, device: torch.device) -> list[float]:
    """Seconds of a few runs for one image, which may decide by itself how much runs."""
    return latencies(network, (image,), device, 0.0, least=2, clock=_clock(device))


def _clock(device: torch.device) -> Callable[[], float]:
    """Of one thread on a processor, its own time, in which other work on the machine takes no part; else the wall's."""
    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _milliseconds(runs: dict[Any, Callable[[], list[float]]]) -> dict[Any, float]:
    """The time of each, all taking turns: of all runs the shortest, as other work on the machine only adds to it."""
    found: dict[Any, list[list[float]]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, measure in runs.items():
            found[name].append(measure())
    return {name: 1e3 * statistics.fmean(map(min, zip(*rounds, strict=True))) for name, rounds in found.items()}


def _line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Offset and slope of the line through points; through the origin where they do not rise."""
    middle_x, middle_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((each - middle_x) ** 2 for each in x)
    slope = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0
    if slope <= 0:
        return 0.0, middle_y / middle_x
    return middle_y - slope * middle_x, slope


def _read(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_bytes())
        if isinstance(facts, dict) and isinstance(facts["machine"], dict) and isinstance(facts["pieces"], dict):
            return facts
    except (OSError, ValueError, KeyError):
        pass
    raise UsageError(f"{file}: no table of latencies can be read from it: remove it to measure anew")
