"""The looks at a claim that have been: they spend of the promised error, whoever asked for them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callbacks.whole_files import write_whole
from exp.claims.cells import Cell
from exp.claims.sequential import Looks
from exp.run_directory import fingerprint

LOOKS = "looks.json"


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

    def marks(self) -> set[str]:
        """All that has been looked at."""
        return {mark for look in self.looks for mark in look.marks.values()}

    def written(self) -> dict[str, Any]:
        """As files hold it."""
        return {
            "planned": self.planned,
            "looks": [look.count for look in self.looks],
            "marks": [look.marks for look in self.looks],
        }


def recall(folder: Path) -> list[History]:
    """The looks that a folder remembers, at cells of today and of other configs; none that cannot be read."""
    try:
        content = json.loads((folder / LOOKS).read_bytes())
        return [_read(each) for each in content]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def remember(folder: Path, history: History) -> None:
    """Keeps the looks so far, beside those at cells of another config or code, whole or not at all."""
    marks = history.marks()
    others = [each for each in recall(folder) if marks.isdisjoint(each.marks())]
    content = [{"seeds": each.seeds} | each.written() for each in (*others, history)]
    write_whole(folder / LOOKS, json.dumps(content, indent=1) + "\n")


def _read(content: Any) -> History:
    """A history as it was written.

    Raises:
        ValueError, LookupError, TypeError: it was not.
    """
    looks = [Look(count, dict(marks)) for count, marks in zip(content["looks"], content["marks"], strict=True)]
    found = History(content["seeds"], content["planned"], looks)
    counts = [look.count for look in looks]
    if not all(type(number) is int and number >= 0 for number in (found.planned, *found.seeds, *counts)):
        raise ValueError("seeds and numbers of seeds are whole numbers")
    if not counts or counts != sorted(set(counts)) or counts[0] < 1 or counts[-1] > len(found.seeds):
        raise ValueError("looks are at more and more of the seeds")
    return found


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
