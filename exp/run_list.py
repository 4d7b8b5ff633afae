"""Runs as a list has them: found by looking into folders, each read from its small files alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from drawing.numbers import readable
from exp.run_state import CONFIG_FILE, STATE_FILE, read_state, state_of

STATES = ("running", "finished", "stopped", "died", "failed", "diverged")
# Folders of folders of runs: experiments, claims with their arms.
DEEPEST = 6
# The end of a table of metrics that has its last row in it.
TAIL = 8192


@dataclass(frozen=True)
class ListedRun:
    """A run, as its `run.json` and its process tell it.

    Args:
        path: its directory.
        name: what a person calls it: the directory below the folder of all runs.
        facts: what `run.json` holds.
    """

    path: Path
    name: str
    facts: dict[str, Any]

    @cached_property
    def state(self) -> str:
        """One of `STATES`; `died`: it left no word, and no process holds it."""
        state = state_of(self.path, self.facts)
        return "died" if state == "interrupted" else state

    @property
    def text(self) -> str:
        """What words are looked for in."""
        parts = [self.name, *(str(self.facts.get(key, "")) for key in ("task", "network", "data", "monitor"))]
        return " ".join(parts).lower()

    @property
    def best(self) -> float | None:
        """The best value of what is monitored."""
        return number(self.facts.get("best"))

    @property
    def monitor(self) -> str:
        """What is monitored; empty where a run of an older exp does not say it."""
        return str(self.facts.get("monitor") or "")

    @property
    def test(self) -> tuple[str, float] | None:
        """What the test found of the monitored metric, by its name."""
        name = f"test/{self.monitor.partition('/')[2]}"
        value = self.tests.get(name)
        return None if value is None else (name, value)

    @property
    def tests(self) -> dict[str, float]:
        """All that the test found."""
        return {name: value for name, each in self._part("test").items() if (value := number(each)) is not None}

    @property
    def surroundings(self) -> dict[str, str]:
        """Versions, commit and machine."""
        return {str(key): str(value) for key, value in self._part("surroundings").items()}

    @property
    def params(self) -> float | None:
        """Parameters of the network."""
        return number(self._part("cost").get("params")) or number(self.facts.get("params"))

    @property
    def macs(self) -> float | None:
        """Multiply-adds that were executed for an image; known of what has finished."""
        return number(self._part("cost").get("macs"))

    @property
    def when(self) -> str:
        """When it was begun, as year, month, day and time."""
        return str(self.facts.get("created") or "").replace("T", " ")

    @property
    def seconds(self) -> float | None:
        """How long it took; of one that runs or has died, until its last sign."""
        told = number(self.facts.get("seconds"))
        if self.state == "finished" and told is not None:
            return told
        try:
            begun = time.mktime(time.strptime(str(self.facts.get("created")), "%Y-%m-%dT%H:%M:%S"))
            end = str(self.facts.get("finished") or "")
            last = (
                time.mktime(time.strptime(end, "%Y-%m-%dT%H:%M:%S"))
                if self.state == "finished"
                else max(os.stat(each).st_mtime for each in (self.path / STATE_FILE, self._table) if each.exists())
            )
        except (ValueError, OSError):
            return told
        return told if told is not None and self.state in ("stopped", "failed", "diverged") else max(0.0, last - begun)

    @property
    def share(self) -> float | None:
        """How much of its steps it has done, where it has not finished."""
        total = number(self.facts.get("total_steps"))
        if self.state == "finished" or not total:
            return None
        step = self._last_step()
        return None if step is None else min(1.0, (step + 1) / total)

    @property
    def _table(self) -> Path:
        return self.path / "metrics.csv"

    def _part(self, key: str) -> dict[str, Any]:
        value = self.facts.get(key)
        return value if isinstance(value, dict) else {}

    def _last_step(self) -> int | None:
        try:
            with self._table.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                lines = file.read().split(b"\n")[:-1]
        except OSError:
            return None
        first = lines[-1].split(b",")[0] if lines else b""
        return int(first) if first.isdigit() else None

    def key(self, order: str) -> Any:
        """What a list is sorted by: more is better, but of names, sizes and times; None where it is not known."""
        if order == "time":
            return self.seconds
        value = getattr(self, order)
        if order == "test":
            value = None if value is None else value[1]
        # Of losses, less is better.
        return -value if order in ("best", "test") and value is not None and self.facts.get("mode") == "min" else value

    def cells(self) -> list[str]:
        """What a line of a list says."""
        share, best, test, seconds = self.share, self.best, self.test, self.seconds
        return [
            self.name,
            self.state + ("" if share is None else f" {share:.0%}"),
            "" if best is None else f"{best:#.4g} {self.monitor}".rstrip(),
            "" if test is None else f"{test[1]:#.4g}",
            *("" if value is None else readable(value) for value in (self.params, self.macs)),
            "" if seconds is None else lasted(seconds),
            self.when[:16],
        ]

    def plain(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "run": self.name,
            "path": str(self.path),
            "state": self.state,
            "monitor": self.monitor or None,
            "best": self.best,
            "test": self.tests,
            "params": self.params,
            "macs": self.macs,
            "seconds": self.seconds,
            "when": self.when or None,
            **{key: self.facts.get(key) for key in ("task", "network", "data", "total_steps", "max_epochs")},
        }


def runs_below(folder: Path) -> Iterator[ListedRun]:
    """All runs in a folder and in its folders, by name; what lies inside of a run is not looked at.

    Args:
        folder: of all runs.
    """
    yield from _below(folder, "", DEEPEST)


def _below(folder: Path, name: str, deepest: int) -> Iterator[ListedRun]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return
    names = {each.name for each in found}
    if name and (STATE_FILE in names or {CONFIG_FILE, "checkpoints"} <= names):
        yield ListedRun(folder, name, read_state(folder))
        return
    if deepest:
        for each in sorted(found, key=lambda each: (not each.name.isdigit(), each.name.zfill(9))):
            if each.is_dir() and not each.name.startswith("."):
                yield from _below(folder / each.name, f"{name}/{each.name}" if name else each.name, deepest - 1)


def number(value: Any) -> float | None:
    """A finite number that a file says, which may say anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(float(value)) < float("inf") else None


def lasted(seconds: float) -> str:
    """A time as people read it: 48 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
