"""What a cell's records say is believed as far as it can be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from exp.claims.cells import Cell, State
from exp.claims.claim_file import Arm
from exp.claims.display import progress


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    (tmp_path / "seed0").mkdir()
    identity = {"config": {}, "arm": {}, "code": {"modules": {}, "libraries": {}}, "after": None}
    return Cell(Arm("slow", {}, (), None), 0, tmp_path / "seed0", [], {}, identity)


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[",
        "[]",
        "3",
        "{}",
        "[" * 100_000,
        '{"identity": [1]}',
        '{"identity": {"code": 3}}',
        '{"identity": {"code": {"a": 1}}}',
    ],
    ids=range(9),
)
def test_a_record_of_unknown_origin(record: str, cell: Cell) -> None:
    cell.record.write_text(record)
    cell.look()
    assert (cell.state, cell.reason) == (State.STALE, "of unknown origin")


@pytest.mark.parametrize(
    "state",
    [
        {"test": [1], "cost": 3},
        {"test": {"test/top1": "high"}, "cost": {"params": [1], "macs": {}}},
        {"test": {"test/top1": 10**400}, "cost": {"params": 10**400, "macs": None}},
        {"test": None, "total_steps": "many", "max_epochs": [1]},
        {"total_steps": -5, "max_epochs": "x"},
    ],
    ids=range(5),
)
def test_numbers_that_are_none(state: dict[str, Any], cell: Cell) -> None:
    (cell.path / "run.json").write_text(json.dumps(state))
    assert math.isnan(cell.value("test/top1", "last", "max"))
    assert all(map(math.isnan, cell.cost().values()))
    assert (progress(cell, "val/top1").total, progress(cell, "val/top1").epochs) == (0, None)
