"""The table of metrics of a run that is killed and goes on."""

from __future__ import annotations

import csv
from collections.abc import Callable
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


def filled(path: Path) -> MetricsTable:
    table = MetricsTable(path)
    for step in range(3):
        table.log_metrics({"loss": 1.0 / (step + 1), "epoch": 0}, step)
    return table


@pytest.mark.parametrize(
    ("harm", "left", "lines"),
    [
        (lambda text: text + b"\x00" * 4096, [0, 1, 2], "line 5"),
        (lambda text: text + b"\x00\xff,\n" * 9, [0, 1, 2], "line 5, 6, 7, 8, 9, 10 and 3 more"),
        (lambda text: text[:-1], [0, 1], "line 4"),
        (lambda text: text[:-6], [0, 1], "line 4"),
        (lambda text: text + b"3,0,abc\n", [0, 1, 2], "line 5"),
        (lambda text: text + b"3,0,1,2\n", [0, 1, 2], "line 5"),
        (lambda text: text + b"-1,0,1\n", [0, 1, 2], "line 5"),
        (lambda text: text + b"3,0," + b"1" * 200_000 + b"\n", [0, 1, 2], "line 5"),
        (lambda text: text + text.splitlines(True)[0], [0, 1, 2], ""),
        (lambda text: text.split(b"\n", 1)[1], [], "no readable header"),
        (lambda text: b"", [], "no readable header"),
    ],
)
def test_what_is_intact_of_a_damaged_table_is_kept(
    harm: Callable[[bytes], bytes], left: list[int], lines: str, tmp_path: Path
) -> None:
    path = filled(tmp_path / "metrics.csv").path
    damaged = harm(path.read_bytes())
    path.write_bytes(damaged)
    table = MetricsTable(path)
    assert lines in table.damage
    assert bool(lines) == bool(table.damage)
    assert path.read_bytes() == damaged  # who only reads changes nothing
    table.rewind(9)
    assert [int(row["step"]) for row in table.rows] == left
    again = MetricsTable(path)
    assert (again.rows, again.damage) == (table.rows, "")
    kept = tmp_path / "metrics.damaged.csv"
    assert (kept.read_bytes() if lines else damaged) == damaged


def test_a_row_that_is_logged_twice_is_there_once(tmp_path: Path) -> None:
    table = filled(tmp_path / "metrics.csv")
    before = table.path.stat().st_ino
    table.log_metrics({"loss": 1.0 / 3, "epoch": 0}, 2)
    assert len(MetricsTable(table.path).rows) == 3
    assert table.path.stat().st_ino == before


def test_rows_that_could_not_be_written_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = filled(tmp_path / "metrics.csv")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerow", full)
        patch.setattr(csv.DictWriter, "writeheader", full)
        for step in (3, 4):
            table.log_metrics({"loss": 0.1}, step)
    assert capsys.readouterr().err.count("No space left on device; training goes on") == 1
    assert "its last rows are lost" in table.problem
    table.settle()
    assert not table.problem
    assert [int(row["step"]) for row in MetricsTable(table.path).rows] == [0, 1, 2, 3, 4]
    table.path.unlink()
    table.settle()
    assert len(MetricsTable(table.path).rows) == 5
