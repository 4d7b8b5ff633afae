"""What is drawn and tabulated of a training's angular updates."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from callbacks import SphericalMotion, SphericalMotionCurve, StepSeed
from callbacks.reports import Place
from exp.loggers import MetricsTable
from tests.library.normed_task import Noise, normed
from tests.library.reports import trainer_with


def fit(folder: Path, beside: dict[str, str], span: int = 1, steps: int = 16) -> SphericalMotionCurve:
    report, table = SphericalMotionCurve(beside), MetricsTable(folder / "metrics.csv")
    report.place = Place(folder, folder, "run", table.series)
    motion = SphericalMotion(granularity="filter", span=span)
    options = {"max_epochs": 1, "log_every_n_steps": 4, "logger": [table]}
    trainer_with(StepSeed(3), motion, report, folder=folder, **options).fit(normed(), Noise(steps))
    assert not report.undrawn
    assert not report.unwritten
    return report


def test_pictures_and_tables_are_written_next_to_other_runs(tmp_path: Path) -> None:
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    fit(tmp_path / "small", {}, span=4, steps=32)
    report = fit(tmp_path / "large", {"small": str(tmp_path / "small")})
    assert {path.name for path in (tmp_path / "large").glob("*.png")} == set(report.pictures)
    assert {path.name for path in (tmp_path / "small").glob("*.png")} == {"spherical_motion.png", "angular_updates.png"}
    figures = report.draw()
    ratio = figures["angle_ratio"].axes[0]
    assert [round(line.get_ydata()[0], 6) for line in ratio.get_lines()[-2:]] == [1, round(math.sqrt(2), 6)]  # type: ignore[index,arg-type]
    assert [axes.get_title() for axes in figures["angular_updates"].axes] == ["this run", "small"]
    with (tmp_path / "large" / "spherical_motion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["layer"], row["unit"], row["parts"], row["theory"]) for row in rows] == [
        ("0", "filter", "8", "sgdm"),
        ("3", "filter", "8", "sgdm"),
        ("7", "layer", "1", "sgdm"),
    ]
    assert float(rows[0]["prediction"]) == pytest.approx(math.sqrt(2 * 0.1 * 0.01 / 1.9), rel=1e-5)
    assert rows[0]["settles_in"] == "75"
    assert rows[0]["small_steps"] == "true"
    with (tmp_path / "large" / "spherical_filters.csv").open() as file:
        assert sum(1 for _ in file) == 1 + 8 + 8 + 1
    assert "3 weights are scale-invariant" in (tmp_path / "large" / "spherical_motion.txt").read_text()


def test_a_run_that_is_none_is_named(tmp_path: Path) -> None:
    report = SphericalMotionCurve({"other": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match=r"beside: other: .*nowhere has no metrics\.csv: name the directory of a run"):
        trainer_with(SphericalMotion(), report, folder=tmp_path, max_epochs=1).fit(normed(), Noise())
    assert not SphericalMotionCurve().applies(normed())
