"""The programs that measure growth: each piece of work does what it says at its smallest sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.growth.__main__ import AXES, cases
from benchmarks.growth.measuring import exponent

# What starts further processes, or writes many files.
HEAVY = ("processes", "images", "cells")
SMALL = [
    pytest.param(axis, number, marks=pytest.mark.slow if axis in HEAVY else [], id=f"{axis}-{number}")
    for axis in AXES
    for number in range(len(cases(axis)))
]


@pytest.mark.parametrize(("axis", "number"), SMALL)
def test_the_work_is_done_at_its_smallest(
    axis: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXP_CACHE", str(tmp_path / "cache"))
    case = cases(axis)[number]
    case.prepare(case.sizes[0], tmp_path)()


def test_growth_is_told_by_the_last_two_sizes_unless_it_is_noise() -> None:
    assert exponent((1, 10, 100), (9.0, 2.0, 200.0), 0.1) == "^2.0"
    assert exponent((10, 20), (1.0, 1.0), 0.1) == "^0.0"
    assert exponent((10, 20), (0.01, 1.0), 0.1) == "too little"
