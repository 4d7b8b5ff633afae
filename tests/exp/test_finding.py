"""What `fit --find` tries, and where its result stands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import exp.finding
from exp.finding import STEPS, Rising, factors, promising
from tests.library.runner import SMALL, run


def test_a_tenth_of_the_least_is_promising() -> None:
    rates = np.log10(factors(STEPS))
    valley = list(2 - np.exp(-((rates - 0.5) ** 2)))
    factor = promising(valley)
    assert factor is not None
    # The mean lags behind by at most a decade.
    assert 10**-0.6 < factor < 10**0.5
    assert promising(list(1 + np.arange(50) / 50)) is None, "a loss that only rises"
    assert promising([]) is None


def test_the_range_test_rises_by_one_factor() -> None:
    table = Rising().table(0.01, 7, STEPS)
    assert table[0] == pytest.approx(1e-5)
    assert table[-1] == pytest.approx(1.0)
    assert np.ptp(table[1:] / table[:-1]) < 1e-9


def test_what_is_found_is_used_and_written_down(tmp_path: Path) -> None:
    options = [*SMALL, "--trainer.max_epochs=1", "--model.schedule.warmup_epochs=0", "--find", "lr,batch"]
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=tables"]
    ended = run("fit", [*options, *logger], tmp_path, sabotage=_hurry)
    assert ended.code == 0, ended.output
    (folder,) = (tmp_path / "runs").glob("*/0")
    found = json.loads((folder / "run.json").read_text())["found"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == found["lr"]
    assert config["data"]["init_args"]["batch_size"] == found["batch_size"]
    assert f"found: --model.optimizer.lr={found['lr']:g}" in ended.output
    # A logger of Lightning's, by its class, has what the run's own table has.
    (table,) = (tmp_path / "tables").glob("**/metrics.csv")
    with table.open() as rows:
        assert any(row.get("val/top1") for row in csv.DictReader(rows))


def _hurry() -> None:
    exp.finding.STEPS = 20


def test_what_cannot_be_found_is_refused(tmp_path: Path) -> None:
    ended = run("fit", [*SMALL, "--find=momentum"], tmp_path)
    assert (ended.code, ended.output) == (2, "exp: --find=momentum: lr, batch or lr,batch can be found\n")
