"""How long a claim takes: what its cells took, and from that what the others still will."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from exp.claims.cells import Cell, State

PUBLISHED = Path("docs/claims")
_ENDED = (State.FINISHED, State.DIVERGED, State.FAILED, State.BLOCKED)


class Remaining:
    """The time that cells still take, which the cells of the same arm tell, then those of other arms, then the past.

    Args:
        name: of the claim.
        jobs: how many cells run at a time; None: all of them.
        published: the folder of published results.
    """

    def __init__(self, name: str, jobs: int | None, published: Path = PUBLISHED) -> None:
        self.jobs = jobs
        self._before = _published(published / name / "circumstances.json")
        # Of finished cells, whose records need not be read again.
        self._walls: dict[Path, float] = {}

    def seconds(self, cells: Iterable[Cell], spent: Mapping[Path, float] | None = None) -> float | None:
        """Seconds until all of some cells have ended; None if nothing tells.

        Args:
            cells: in any state.
            spent: seconds that running ones have taken, by their paths.
        """
        cells = list(cells)
        known = self._known(cells) or self._before
        left = []
        for cell in cells:
            if cell.state in _ENDED:
                continue
            if not known:
                return None
            told = known.get(cell.arm.name) or [wall for walls in known.values() for wall in walls]
            left.append(max(0.0, median(told) - (spent or {}).get(cell.path, 0.0)))
        return max(sum(left) / min(self.jobs or len(left), len(left)), *left) if left else 0.0

    def sentence(self, cells: Iterable[Cell], spent: Mapping[Path, float] | None = None) -> str:
        """`, about 5 min left with 2 jobs`; empty if nothing tells."""
        seconds = self.seconds(cells, spent)
        if not seconds:
            return ""
        jobs = "" if self.jobs is None else f" with {self.jobs} job{'s' * (self.jobs > 1)}"
        return f", about {rounded(seconds)} left{jobs}"

    def _known(self, cells: Iterable[Cell]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for cell in cells:
            if cell.state is State.FINISHED:
                if cell.path not in self._walls:
                    self._walls[cell.path] = cell.wall()
                if (wall := self._walls[cell.path]) > 0:
                    found.setdefault(cell.arm.name, []).append(wall)
        return found


def rounded(seconds: float) -> str:
    """A time as people say it: `40 s`, `5 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def minutes(around: Mapping[str, Any]) -> float:
    """Minutes that a published result took; of those that did not say, what two cells at a time train for.

    Args:
        around: what `circumstances.json` holds.
    """
    told = around.get("minutes")
    return told if told is not None else sum(sum(times) for times in _times(around, "seconds").values()) / 2 / 60


def _times(around: Mapping[str, Any], *keys: str) -> dict[str, list[float]]:
    """The seconds of every arm's cells: of each, the first of some keys that it has."""
    found = {
        arm: [next((cell[key] for key in keys if cell.get(key)), 0.0) for cell in cells.values()]
        for arm, cells in around["arms"].items()
    }
    return {arm: known for arm, times in found.items() if (known := [each for each in times if each])}


def _published(file: Path) -> dict[str, list[float]]:
    try:
        return _times(json.loads(file.read_bytes()), "wall", "seconds")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
