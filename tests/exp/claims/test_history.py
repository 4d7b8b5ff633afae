"""Looks that were are looks, as long as they were at the same cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exp.claims.cells import Cell
from exp.claims.claim_file import Arm
from exp.claims.history import History, recall, remember, still_valid
from exp.claims.sequential import Looks


def cells(*seeds: int, arms: tuple[str, ...] = ("a", "b"), code: str = "old") -> list[Cell]:
    """Planned cells, whose identity is that of their code."""
    return [
        Cell(Arm(arm, {}, ()), seed, Path(arm), [], {}, {"code": code, "seed": seed}) for seed in seeds for arm in arms
    ]


@pytest.fixture
def looked() -> History:
    """Two looks at two arms, and a third at one of them."""
    history = History([3, 0, 1, 2, 4], 4)
    history.add(cells(3, 0, 1), 3, ["a", "b"])
    history.add(cells(3, 0, 1, 2), 4, ["a", "b"])
    history.add(cells(3, 0, 1, 2, 4), 5, ["a"])
    return history


def read_back(history: History, folder: Path) -> History | None:
    remember(folder, history)
    return next(iter(recall(folder)), None)


def test_it_reads_back(looked: History, tmp_path: Path) -> None:
    assert read_back(looked, tmp_path) == looked
    assert looked.of(["a"]) == Looks((3, 4, 5), 4)
    assert looked.of(["a", "b"]) == looked.of(["b"]) == Looks((3, 4), 4)
    assert looked.of(["a", "c"]) is None


def test_looks_at_other_cells_are_not_forgotten_for_these(looked: History, tmp_path: Path) -> None:
    other = History([0, 1, 2], 2)
    other.add(cells(0, 1, code="new"), 2, ["a", "b"])
    for history in (looked, other, looked, other):
        remember(tmp_path, history)
    assert recall(tmp_path) == [looked, other]
    other.add(cells(0, 1, 2, code="new"), 3, ["a"])
    remember(tmp_path, other)
    assert recall(tmp_path) == [looked, other]


def test_to_look_twice_at_the_same_is_to_look_once(looked: History) -> None:
    before = list(looked.looks)
    looked.add(cells(3, 0, 1, 2), 4, ["a", "b"])
    assert looked.looks == before
    looked.add(cells(3, 0, 1, 2, 4), 5, ["b"])
    assert looked.of(["a", "b"]) == Looks((3, 4, 5), 4)


def test_looks_at_other_cells_are_none(looked: History) -> None:
    same = still_valid(looked, cells(0, 1, 2, 3, 4, 5))
    assert same == looked
    assert still_valid(looked, cells(0, 1, 2, 3, 4, code="new")) is None
    # A seed that no longer is among the planned ones has been seen, but not these cells.
    assert still_valid(looked, cells(0, 1)) is None
    # Of an arm that is left out today, the looks stay.
    other = [*cells(0, 1, 2, 3, 4, arms=("a",), code="new"), *cells(0, 1, 2, 3, 4, arms=("b",))]
    mixed = still_valid(looked, other)
    assert mixed is not None
    assert mixed.of(["b"]) == Looks((3, 4), 4)
    assert mixed.of(["a", "b"]) is None
    assert mixed.seeds == [3, 0, 1, 2]
    alone = still_valid(looked, cells(0, 1, 2, 3, 4, arms=("b",)))
    assert alone is not None
    assert alone.of(["a", "b"]) == Looks((3, 4), 4)


@pytest.mark.parametrize(
    "change",
    [
        {"planned": None},
        {"planned": -1},
        {"seeds": "0"},
        {"seeds": [0]},
        {"looks": [3, 3, 5]},
        {"looks": [0, 4, 5]},
        {"looks": []},
        {"marks": [1, 2, 3]},
        {"marks": []},
    ],
)
def test_what_is_no_history_is_none(change: dict[str, Any], looked: History, tmp_path: Path) -> None:
    (tmp_path / "looks.json").write_text(json.dumps([{"seeds": looked.seeds} | looked.written() | change]))
    assert recall(tmp_path) == []


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", "3", "[" * 100_000, "\x00"], ids=range(7))
def test_a_file_that_is_no_result(text: str, tmp_path: Path) -> None:
    assert recall(tmp_path) == []
    (tmp_path / "looks.json").write_text(text)
    assert recall(tmp_path) == []
