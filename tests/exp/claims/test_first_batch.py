"""What a batch of an arm shows before any arm trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from exp.claims.first_batch import try_first_batch

ROOT = Path(__file__).parents[3]


def test_metrics_of_all_kinds_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of steps, too, of which a training logs one of many, and those that a callback measures."""
    monkeypatch.chdir(ROOT)
    trial = try_first_batch(["--config=configs/classification/spherical_digits.yaml"])
    assert not trial.problem
    assert {"train/loss", "train/smd_ratio", "val/top1", "test/top1"} <= set(trial.metrics)
    assert 0.1 < trial.metrics["train/smd_ratio"] < 10
