"""The table of metrics of a run that is killed and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from exp.loggers import MetricsTable


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
