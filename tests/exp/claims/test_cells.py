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
    return Cell(Arm("slow", {}, ()), 0, tmp_path / "seed0", [], {}, identity)


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


def table(cell: Cell, text: str) -> None:
    (cell.path / "metrics.csv").write_text(text)


def test_the_last_or_the_best_logged_value_counts(cell: Cell) -> None:
    table(cell, "step,epoch,val/top1\n0,0,1.5\n1,1,3.0\n2,2,0.5\n3,3,2.0\n")
    assert cell.value("val/top1", "last", "max") == cell.value("val/top1", "last", "min") == 2.0
    assert cell.value("val/top1", "best", "max") == 3.0
    assert cell.value("val/top1", "best", "min") == 0.5
    assert math.isnan(cell.value("val/top5", "last", "max"))
    (cell.path / "run.json").write_text('{"test": {"test/top1": 4}}')
    assert cell.value("test/top1", "best", "max") == 4.0


def test_what_a_cell_cost(cell: Cell) -> None:
    (cell.path / "run.json").write_text('{"cost": {"params": 10, "macs": 2.5, "latency": 0.5}}')
    # Two steps at 8 images a second and three at 12, with 4 images in a batch and two batches in a step.
    table(cell, "step,epoch,train/images_per_second\n1,0,8\n4,0,12\n")
    cell.config |= {"data": {"init_args": {"batch_size": 4}}, "trainer": {"accumulate_grad_batches": 2}}
    assert cell.cost() == {"params": 10, "macs": 2.5, "latency": 0.5, "seconds": 2 + 2, "throughput": 5 * 8 / 4}
    cell.config["trainer"] = {}
    assert cell.cost() == {"params": 10, "macs": 2.5, "latency": 0.5, "seconds": 1 + 1, "throughput": 5 * 4 / 2}
    cell.config["data"]["init_args"] = {}
    assert math.isnan(cell.cost()["seconds"])


def test_how_far_a_cell_has_come(cell: Cell) -> None:
    cell.note(identity=cell.identity)
    for status, state in (("finished", State.FINISHED), ("stopped", State.UNFINISHED)):
        (cell.path / "run.json").write_text(json.dumps({"status": status}))
        cell.look()
        assert (cell.state, cell.reason) == (state, "")
    cell.identity = cell.identity | {"after": "other"}
    cell.look()
    assert (cell.state, cell.reason) == (State.STALE, "the arm that it starts from has changed")
    for number in range(2):
        cell.path.mkdir(exist_ok=True)
        cell.clear(keep=True)
        assert (cell.path.parent / f"stale/seed0-{number}").is_dir()
        assert cell.state is State.NEW
        assert not cell.record.exists()
    cell.path.mkdir()
    cell.clear(keep=False)
    cell.look()
    assert (cell.state, cell.path.exists()) == (State.NEW, False)
    assert len(list((cell.path.parent / "stale").iterdir())) == 2


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"config": {"lr": 2}}, "lr: 1 -> 2"),
        ({"arm": {"devices": 2}}, "devices: 1 -> 2"),
        # What an arm changes shows in its config.
        ({"config": {"lr": 2}, "arm": {"devices": 2}}, "lr: 1 -> 2"),
        ({"config": {"lr": 2}, "after": "other"}, "lr: 1 -> 2; the arm that it starts from has changed"),
    ],
)
def test_why_a_cell_is_stale(changed: dict[str, Any], reason: str, cell: Cell) -> None:
    cell.identity |= {"config": {"lr": 1}, "arm": {"devices": 1}}
    cell.note(identity=cell.identity)
    cell.identity = cell.identity | changed
    cell.look()
    assert (cell.state, cell.reason) == (State.STALE, reason)
