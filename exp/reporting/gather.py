"""What a report has of a run: read from the files that it left, as far as they can be read."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exp.run_directory import essence
from exp.run_list import ListedRun
from exp.run_state import CONFIG_FILE, read_state

Series = tuple[list[float], list[float]]
# Points of a curve that a page shows: twice as many as a panel has use for.
POINTS = 400
# The parser that is written in C, where there is one, is ten times as fast.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Gathered:
    """A run on a report.

    Args:
        run: as a list has it.
        config: what decides what is computed, by key as it is typed.
        series: steps and values of each logged metric.
        pictures: what it has drawn, by name.
    """

    run: ListedRun
    config: dict[str, str]
    series: dict[str, Series]
    pictures: dict[str, Path]


def gather(path: Path, runs: Path) -> Gathered:
    """Reads a run.

    Args:
        path: its directory.
        runs: the folder of all runs, below which it has its name.
    """
    inside = path.resolve().is_relative_to(runs.resolve())
    name = str(path.resolve().relative_to(runs.resolve())) if inside else str(path)
    pictures = {each.stem: each for each in sorted((path / "plots").glob("*.png"))}
    run = ListedRun(path, name, read_state(path))
    return Gathered(run, _config(path / CONFIG_FILE), _series(path / "metrics.csv"), pictures)


def _config(path: Path) -> dict[str, str]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return {}
    return dict(_leaves(essence(content))) if isinstance(content, dict) else {}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            # As a person types it: arguments of a class are under its own key.
            inner = key if name in ("init_args", "class_path") and key else f"{key}.{name}" if key else str(name)
            yield from _leaves(each, inner)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for i, each in enumerate(value):
            yield from _leaves(each, f"{key}.{i}")
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, default=str)


def _series(path: Path) -> dict[str, Series]:
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.reader(line for line in file if "\0" not in line))
    except (OSError, csv.Error):
        return {}
    if not rows or "step" not in rows[0]:
        return {}
    names, at = rows[0], rows[0].index("step")
    found: dict[str, Series] = {name: ([], []) for name in names if name not in ("step", "epoch")}
    for row in rows[1:]:
        if len(row) != len(names) or not row[at].isdigit():
            continue
        step = float(row[at])
        for name, text in zip(names, row, strict=True):
            if text and name in found and (value := _number(text)) is not None:
                found[name][0].append(step)
                found[name][1].append(value)
    return {name: thinned(*each) for name, each in found.items() if each[0]}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def thinned(steps: Sequence[float], values: Sequence[float], most: int = POINTS) -> Series:
    """At most so many points of a curve, with the extremes of what lies between.

    Args:
        steps, values: the curve.
        most: points, at least 4.
    """
    if len(steps) <= most:
        return list(steps), list(values)
    places = {0, len(steps) - 1}
    buckets = most // 2 - 1
    for i in range(buckets):
        inside = range(i * len(steps) // buckets, (i + 1) * len(steps) // buckets)
        places |= {min(inside, key=values.__getitem__), max(inside, key=values.__getitem__)}
    kept = sorted(places)
    return [steps[i] for i in kept], [values[i] for i in kept]
