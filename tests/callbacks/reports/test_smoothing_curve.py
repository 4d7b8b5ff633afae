"""The picture of what follows what: when there is one, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from callbacks import AveragedWeights, Rule, Smoothing, WeightEMA
from callbacks.reports import Place, reports_of
from callbacks.reports.smoothing_curve import SmoothingCurve
from lightning_modules import Classification, Task
from tests.library.reports import trainer_with
from tests.library.taught_task import taught
from tests.library.toy_task import Numbers, seeded


@pytest.mark.parametrize(
    ("callback", "asked"),
    [
        (Smoothing(Rule(0.9)), ["distance", "momentum"]),
        (AveragedWeights(Rule(0.9, 0.5)), ["distance", "momentum", "effective_momentum", "renewed", "age"]),
        (WeightEMA(), []),
    ],
)
def test_what_is_drawn(callback: Callback, asked: list[str], tmp_path: Path) -> None:
    names: list[str] = []

    def series(name: str) -> Any:
        names.append(name)
        return [10, 20, 30], [0.1, 0.3, 0.2]

    report = SmoothingCurve()
    report.place = Place(tmp_path, tmp_path, "a run", series)
    module: Task = taught() if isinstance(callback, Smoothing) else seeded()
    trainer_with(callback, report, folder=tmp_path, max_epochs=1).fit(module, Numbers())
    assert not report.undrawn
    assert (tmp_path / "smoothing.png").exists() == bool(asked)
    name = "teacher" if isinstance(callback, Smoothing) else "average"
    assert [each.partition("/")[2].partition("/")[0].removeprefix(f"{name}_") for each in names] == asked


def test_every_task_has_it() -> None:
    assert SmoothingCurve in reports_of(Classification)
