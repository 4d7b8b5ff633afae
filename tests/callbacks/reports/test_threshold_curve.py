"""Accuracy against compute over thresholds: what is measured, chosen, remembered and drawn."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from callbacks import ThresholdCurve
from callbacks.reports.threshold_curve import Point, choices
from lightning_modules import Segmentation
from models.segmenters import ADPC
from tests.library.adpc_networks import TINY, settled
from tests.library.reports import placed, trainer_with
from tests.library.segmentation import CLASSES, Answers, Scenes

THRESHOLDS = (0.7, 0.9, 0.99)


def module(threshold: float | None = 0.9) -> Segmentation:
    torch.manual_seed(0)
    network = settled(ADPC(**(TINY | {"num_classes": CLASSES, "pooled_dim": None}), threshold=threshold))
    # So that it is surer of some pixels than of others.
    for exit in network.exits:
        exit.classifier.weight.data *= 4
    return Segmentation(network)


def evaluated(
    folder: Path, callback: ThresholdCurve, task: LightningModule, command: str = "validate", samples: int = 5
) -> dict[str, Any]:
    trainer = trainer_with(placed(callback, folder), folder=folder)
    return dict(getattr(trainer, command)(task, Scenes(samples), verbose=False)[0])


def table(folder: Path) -> dict[tuple[str, int], dict[str, str]]:
    with (folder / "threshold_curve.csv").open() as file:
        return {(row["threshold"], int(row["exit"])): row for row in csv.DictReader(file)}


def test_every_threshold_is_what_a_run_with_it_measures(tmp_path: Path) -> None:
    task = module()
    logged = evaluated(tmp_path, ThresholdCurve(THRESHOLDS), task)
    assert task.network.thresholds == (0.9,) * 3
    rows = table(tmp_path)
    assert [name for name, _ in rows] == [name for name in ("0.7", "0.9", "0.99") for _ in range(4)]
    for threshold in THRESHOLDS:
        alone = evaluated(tmp_path / "alone", ThresholdCurve(THRESHOLDS), module(threshold))
        for exit in range(4):
            row, name = rows[f"{threshold:g}", exit], f"_exit{exit}" if exit < 3 else ""
            assert float(row["miou"]) == pytest.approx(alone[f"val/miou{name}"], abs=1e-6)
            assert float(row["macs"]) == pytest.approx(alone[f"val/macs{name}"], abs=1)
            assert float(row["published_macs"]) == pytest.approx(alone[f"val/published_macs{name}"], abs=1)
    # Of pixels that are annotated, the first four rows are not.
    data = Scenes()
    looks = [task.look(image, image.shape[1:])[0].confidence[4:] for image in data.images]
    assert logged["val/sure_share_exit0"] == pytest.approx((torch.stack(looks) > 0.9).double().mean().item(), abs=1e-3)
    assert 0 < logged["val/sure_accuracy_exit0"] < 1
    assert "val/sure_share" not in logged
    # The lower the threshold, the fewer pixels are computed.
    published = [float(rows[f"{threshold:g}", 3]["published_macs"]) for threshold in THRESHOLDS]
    assert published == sorted(published)
    assert published[0] < published[-1]
    assert logged["val/published_macs_saved"] == pytest.approx(1 - published[1] / dense(task), abs=1e-6)
    assert (tmp_path / "threshold_curve.png").stat().st_size > 10_000


def dense(task: Segmentation) -> float:
    # Images are padded to multiples of 32.
    return task.network.dense_macs((3, 64, 64))[-1]  # type: ignore[operator]


def test_a_test_uses_what_a_validation_has_chosen(tmp_path: Path) -> None:
    callback, task = ThresholdCurve(THRESHOLDS, budgets=[94, 100], count="published"), module()
    on_val = evaluated(tmp_path, callback, task)
    chosen = dict(callback.choices)
    kept = ThresholdCurve(THRESHOLDS, budgets=[94, 100], count="published")
    kept.load_state_dict(callback.state_dict())
    assert kept.choices == chosen
    # Other images, on which others would be best.
    on_test = evaluated(tmp_path, kept, task, "test", samples=2)
    assert kept.choices == chosen
    rows = table(tmp_path)
    best = {}
    for budget in (94, 100):
        thresholds, exit = chosen[budget]
        best[budget] = rows[f"{thresholds[0]:g}", exit]
        assert on_test[f"test/miou_at_{budget}"] == pytest.approx(float(best[budget]["miou"]), abs=1e-6)
        assert on_test[f"test/share_at_{budget}"] == pytest.approx(float(best[budget]["share"]), abs=1e-6)
        assert on_val[f"val/share_at_{budget}"] <= budget / 100
    assert on_val["val/miou_at_94"] <= on_val["val/miou_at_100"]
    first = float(rows["0.9", 0]["share"])
    assert min(chosen) == int(-(-100 * first // 1))
    mean = sum(float(rows[f"{t[0]:g}", exit]["miou"]) for t, exit in chosen.values()) / len(chosen)
    assert on_test["test/miou_auc"] == pytest.approx(mean, abs=1e-6)


def test_without_thresholds_only_the_exit_is_chosen(tmp_path: Path) -> None:
    callback, task = ThresholdCurve(THRESHOLDS), module(None)
    logged = evaluated(tmp_path, callback, task)
    assert list(table(tmp_path)) == [("every pixel", exit) for exit in range(4)]
    assert {thresholds for thresholds, _ in callback.choices.values()} == {()}
    assert logged["val/share_at_100"] <= 1
    assert logged["val/macs_saved"] == logged["val/published_macs_saved"] == 0


def test_choices_are_the_best_within_the_budget() -> None:
    points = [
        Point((0.9,), exit, miou, 0, 0, share)
        for exit, miou, share in ((0, 0.2, 0.301), (1, 0.5, 0.6), (2, 0.4, 0.7), (3, 0.5, 1 + 1e-12))
    ]
    chosen = choices(points)
    assert min(chosen) == 31
    assert chosen[59] == ((0.9,), 0)
    # Of two equally good ones the cheaper, and never one that is dearer and worse.
    assert {chosen[budget] for budget in range(60, 101)} == {((0.9,), 1)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": []}, "at least one"),
        ({"budgets": [0]}, "in \\(0, 100\\]"),
        ({"count": "dense"}, "one of executed, published, not 'dense'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThresholdCurve(**options)


def test_a_network_without_thresholds_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is for Segmentation with ADPC, not for Segmentation with Answers"):
        evaluated(tmp_path, ThresholdCurve(), Segmentation(Answers()))
