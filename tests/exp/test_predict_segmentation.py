"""Segmentation from the command line: a run's pictures and files, its evaluation, predictions with a deadline."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from callbacks.reports import Place, Source
from callbacks.reports.segmented_files import SegmentedFiles
from datamodules import DigitStreets
from lightning_modules import Segmentation
from lightning_modules.segmentation_views import MultiScale, SlidingWindow
from models.compute import executed
from models.segmenters.inference import padded
from tests.library.routed_networks import tiny, undecided
from tests.library.runner import run
from tests.library.segmentation import CLASSES, Answers, OneByOne, Scenes, trainer

NETWORK = {
    "class_path": "models.segmenters.adpc.ADPC",
    "init_args": {
        "num_classes": 11,
        "stages": [[1, [1], [4]], [1, [1] * 2, [4, 4]], [1, [1] * 3, [4] * 3], [1, [1] * 4, [4] * 4]],
        "pooled_dim": 4,
        "threshold": 0.5,
        "init_std": None,
    },
}
CONFIG = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model=Segmentation",
    f"--model.network={json.dumps(NETWORK)}",
    "--model.schedule=Poly",
    "--model.write_labels=true",
    "--data=DigitStreets",
    "--data.num_train=8",
    "--data.num_val=4",
    "--data.num_test=4",
    "--data.batch_size=4",
    "--wandb=disabled",
    "--experiment=run",
]
SOURCE = Source(Path("last.ckpt"), {}, Scenes(1).class_names, Path("validate"))
CHECKPOINT = "--ckpt_path=runs/run/0/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXP_CACHE", str(folder / "cache"))
        ended = run("fit", CONFIG, folder)
    assert ended.code == 0, ended.output
    pixels = np.random.default_rng(0)
    for name, size in (("a", (64, 64)), ("b", (64, 64)), ("odd", (50, 70))):
        Image.fromarray(pixels.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{name}.jpg")
    return folder


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXP_CACHE", str(folder / "cache"))


def test_fit_tests_draws_and_writes(folder: Path) -> None:
    path = folder / "runs/run/0"
    for name in ("plots/segmentation.png", "plots/class_iou.png", "plots/miou_curve.png", "classes.csv"):
        assert (path / name).stat().st_size > 0
    ids = set(DigitStreets.label_map.ids)
    written = sorted((path / "labels").iterdir())
    assert [p.name for p in written] == [f"digits_000000_{i:06d}_leftImg8bit.png" for i in range(4)]
    assert all(set(np.unique(cv2.imread(str(p), cv2.IMREAD_UNCHANGED))) <= ids for p in written)
    metrics = json.loads((path / "run.json").read_text())["test"]
    costs = [metrics[f"test/macs{name}"] for name in ("_exit0", "_exit1", "_exit2", "")]
    assert costs == sorted(costs)
    assert costs[0] > 0


def test_predictions_are_pictures_labels_and_a_table(folder: Path) -> None:
    ended = run("predict", [CHECKPOINT, "--data.eval_batch_size=1", "a.jpg", "odd.jpg"], folder)
    assert ended.code == 0, ended.output
    assert "executed:" in ended.output
    out = folder / "runs/run/0/predict"
    assert {p.name for p in (out / "pictures").iterdir()} == {"a.png", "odd.png"}
    assert cv2.imread(str(out / "labels/odd.png"), cv2.IMREAD_UNCHANGED).shape == (50, 70)
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["a.jpg", "odd.jpg"]
    for row in rows:
        assert sum(float(row[name]) for name in DigitStreets.label_map.names) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("milliseconds", "exit", "late"), [("0.001", "0", 2), ("100000", "3", 0)])
def test_a_deadline_chooses_the_exit(milliseconds: str, exit: str, late: int, folder: Path) -> None:
    ended = run("predict", [CHECKPOINT, "--deadline-ms", milliseconds, "a.jpg", "b.jpg"], folder)
    assert ended.code == 0, ended.output
    # What ran differs from image to image, and is not counted.
    assert "executed:" not in ended.output
    assert f"{late} of 2 images took longer than" in ended.output
    with (folder / "runs/run/0/predict/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["exit"] for row in rows] == [exit] * 2
    times = [float(row["milliseconds"]) for row in rows]
    assert min(times) > 0
    # Trial runs, by which it is known how long an exit takes, are not the images' time.
    assert json.loads((folder / "runs/run/0/predict/compute.json").read_text())["seconds_per_image"] == pytest.approx(
        sum(times) / 2e3, rel=0.01, abs=1e-5
    )


@pytest.mark.parametrize(
    ("milliseconds", "network", "options", "message"),
    [
        (-3.0, OneByOne, {}, "--deadline-ms -3: it must be above 0"),
        (3.0, Answers, {}, "--deadline-ms: Answers has no exits to stop at"),
        (3.0, OneByOne, {"multi_scale": MultiScale()}, "--deadline-ms is for whole images"),
        (
            3.0,
            OneByOne,
            {"sliding_window": SlidingWindow((8, 8), (8, 8))},
            "set sliding_window and multi_scale to null",
        ),
    ],
)
def test_a_deadline_that_cannot_be_kept_is_refused(
    milliseconds: float, network: Any, options: dict[str, Any], message: str
) -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    with pytest.raises(ValueError, match=re.escape(message)):
        SegmentedFiles(milliseconds).prepare(trainer, Segmentation(network(), **options), SOURCE)


def test_a_deadline_is_refused_in_one_line(folder: Path) -> None:
    ended = run("predict", [CHECKPOINT, "--deadline_ms=-3", "a.jpg"], folder)
    assert ended.code == 2
    assert ended.output == "exp: --deadline-ms -3: it must be above 0\n"


@pytest.mark.parametrize("dynamic", [True, False])
def test_images_with_routes_of_their_own_are_told_what_they_cost(dynamic: bool, tmp_path: Path) -> None:
    network = undecided(num_classes=CLASSES) if dynamic else tiny(num_classes=CLASSES, route="unet")
    data, model = Scenes(4), Segmentation(network)
    report = SegmentedFiles()
    report.place = Place(tmp_path / "out", tmp_path / "out")
    runs = trainer(tmp_path, callbacks=[report])
    report.prepare(runs, model, SOURCE)
    batches = runs.predict(model, data)
    written = report.finish(batches or [], tmp_path / "out", Console(quiet=True))
    with (tmp_path / "out/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ("macs" in rows[0]) == (tmp_path / "out/routes" in written) == dynamic
    if dynamic:
        costs = [executed(network, padded(image[None])).macs for image in data.images]
        assert [float(row["macs"]) for row in rows] == costs
        pictures = {path.name for path in (tmp_path / "out/pictures").iterdir()}
        assert {path.name for path in (tmp_path / "out/routes").iterdir()} == pictures
