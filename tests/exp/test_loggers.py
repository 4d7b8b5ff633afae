"""The table of metrics of a run that is killed and goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from exp.loggers import MetricsTable, wandb_logger


@pytest.mark.parametrize(("step", "left"), [(0, []), (2, [0, 1]), (9, [0, 1, 2, 3])])
def test_rows_at_and_after_a_step_are_dropped(step: int, left: list[int], tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    table.rewind(0)
    assert not table.path.exists()
    for i in range(4):
        table.log_metrics({"loss": 1.0 / (i + 1)}, i)
    again = MetricsTable(table.path)
    again.rewind(step)
    assert [int(row["step"]) for row in again.rows] == left
    assert MetricsTable(table.path).series("loss") == ([*left], [pytest.approx(1 / (i + 1), rel=1e-6) for i in left])


@pytest.mark.parametrize("run_id", ["../../elsewhere", "a/b", "", "x" * 100, ["a"], {"a": 1}, None, "a b"])
def test_a_strange_id_of_a_run_is_replaced(run_id: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def init(**options: Any) -> None:
        given.append(options["id"])
        raise InterruptedError

    monkeypatch.setattr("wandb.init", init)
    for each in (run_id, "abc-1_2"):
        with pytest.raises(InterruptedError):
            wandb_logger("offline", tmp_path, "one", each, {})
    assert re.fullmatch(r"[0-9a-f]{8}", given[0])
    assert given[1] == "abc-1_2"
