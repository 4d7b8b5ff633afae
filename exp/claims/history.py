"""The looks at a claim that have been: they spend of the promised error, whoever asked for them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exp.claims.cells import Cell
from exp.claims.sequential import Looks
from exp.run_directory import fingerprint


@dataclass(frozen=True)
class Look:
    """One look.

    Args:
        count: how many seeds there were.
        marks: arm -> a hash of what the results of its cells depend on.
    """

    count: int
    marks: dict[str, str]


@dataclass
class History:
    """The looks at a claim so far, and those to come.

    Args:
        seeds: in the order in which they were, or will be, looked at.
        planned: how many were planned before the first look.
        looks: those that were, ascending.
    """

    seeds: list[int]
    planned: int
    looks: list[Look] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """How many seeds have been looked at."""
        return max((look.count for look in self.looks), default=0)

    def add(self, cells: Sequence[Cell], count: int, arms: Collection[str]) -> None:
        """Notes a look at the first `count` seeds of some arms; the same look twice is one."""
        marks = {arm: _mark(cells, arm, self.seeds[:count]) for arm in arms}
        same = next((look for look in self.looks if look.count == count), None)
        if same is not None:
            marks = same.marks | marks
            self.looks.remove(same)
        self.looks = sorted([*self.looks, Look(count, marks)], key=lambda look: look.count)

    def of(self, arms: Collection[str]) -> Looks | None:
        """The looks at all of these arms; None if there were none."""
        counts = tuple(look.count for look in self.looks if set(arms) <= look.marks.keys())
        return Looks(counts, self.planned) if counts else None

    def written(self) -> dict[str, Any]:
        """As `results.json` holds it."""
        return {
            "planned": self.planned,
            "looks": [look.count for look in self.looks],
            "marks": [look.marks for look in self.looks],
        }


def earlier(file: Path) -> History | None:
    """The looks that a result holds; None if it holds none, or cannot be read."""
    try:
        content = json.loads(file.read_bytes())
        seeds, planned = content["seeds"], content["planned"]
        looks = [Look(count, marks) for count, marks in zip(content["looks"], content["marks"], strict=True)]
        whole = [planned, *seeds, *(look.count for look in looks)]
        if not all(type(number) is int and number >= 0 for number in whole):
            return None
        counts = [look.count for look in looks]
        if counts != sorted(set(counts)) or not counts or counts[-1] > len(seeds) or counts[0] < 1:
            return None
        if not all(isinstance(look.marks, dict) for look in looks):
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return History(seeds, planned, looks)


def still_valid(history: History, cells: Sequence[Cell]) -> History | None:
    """The looks at what is looked at today: those at cells of another config or code are none.

    Args:
        history: the looks so far.
        cells: today's, of the history's seeds and more.
    """
    looks = []
    for look in history.looks:
        known = {cell.arm.name for cell in cells}
        # An arm that is left out today has been looked at all the same.
        marks = {
            arm: mark
            for arm, mark in look.marks.items()
            if arm not in known or mark == _mark(cells, arm, history.seeds[: look.count])
        }
        if any(arm in known for arm in marks):
            looks.append(Look(look.count, marks))
    return History(history.seeds[: looks[-1].count], history.planned, looks) if looks else None


def _mark(cells: Sequence[Cell], arm: str, seeds: Sequence[int]) -> str:
    identities = {str(cell.seed): cell.identity for cell in cells if cell.arm.name == arm}
    return fingerprint({str(seed): identities.get(str(seed)) for seed in seeds})
