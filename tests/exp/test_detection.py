"""Detectors through the real command line: fit on two processes, validate on one, predict, profile."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightning_modules import Detection
from tests.library.run_contents import after, assert_same, contents
from tests.library.runner import PATIENCE, run

ROOT = Path(__file__).parents[2]
NETWORK = """{class_path: models.detectors.SOLQ, init_args: {backbone: plain_conv, frozen_norm: false,
    frozen_stages: 0, num_classes: 10, num_queries: 100, hidden_dim: 32, num_heads: 2, feedforward_dim: 32,
    encoder_layers: 1, decoder_layers: 2, num_levels: 2, norm_groups: 8, num_coefficients: 16, mask_size: 16,
    vector_hidden_dim: 16, num_detections: 1000}}"""
CONFIG = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--model=Detection",
    f"--model.network={NETWORK}",
    "--model.lr_multipliers={backbone: 0.1}",
    "--model.optimizer=torch.optim.AdamW",
    "--model.optimizer.lr=1e-3",
    "--data=DigitScenes",
    "--data.batch_size=4",
    "--data.num_train=8",
    "--data.num_val=9",
    # About as small as the boxes that an untrained network predicts.
    "--data.digit_size=[8, 10]",
    "--wandb=disabled",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained and evaluated."""
    folder = tmp_path_factory.mktemp("detection")
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), EXP_CACHE=str(folder / "cache"))
    argv = [*CONFIG, "--experiment=run", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "exp", "fit", *argv]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXP_CACHE", str(folder / "cache"))


def last(folder: Path) -> list[str]:
    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.enable_progress_bar=false"]
    return [f"--ckpt_path={folder / 'runs/run/0/checkpoints/last.ckpt'}", *one]


def test_two_processes_evaluate_like_one(folder: Path) -> None:
    with (folder / "runs/run/0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name: float(value) for name, value in rows[-1].items() if name.startswith("val/") and value}
    ended = run("validate", last(folder), folder)
    assert ended.code == 0, ended.output
    output = folder / "runs/run/0/validate"
    metrics = json.loads((output / "metrics.json").read_text())
    assert len(metrics) == 24
    assert metrics == pytest.approx(logged, abs=1e-6)
    assert metrics["val/box_ar100"] > 0
    # 9 images in batches of 4 for two processes: one has the last alone, and each image counts once.
    found = json.loads((output / "detections_segm.json").read_text())
    assert [entry["image_id"] for entry in found] == [image for image in range(1, 10) for _ in range(1000)]
    assert sorted(p.name for p in output.glob("*.png")) == [
        "category_ap.png",
        "detections.png",
        "precision_recall.png",
    ]
    assert "category" in ended.output
    assert "box_ap50" in ended.output


def test_the_run_has_its_pictures_and_the_category_ids(folder: Path) -> None:
    plots = {p.name for p in (folder / "runs/run/0/plots").iterdir()}
    assert plots == {"category_ap.png", "detections.png", "learning_curve.png", "precision_recall.png"}
    state = json.loads((folder / "runs/run/0/run.json").read_text())
    assert state["cost"]["macs"] > 0


def test_predict_in_pixels_of_the_files(folder: Path) -> None:
    images = folder / "images"
    images.mkdir()
    for name, size in (("wide.png", (96, 48)), ("tall.jpg", (40, 80))):
        Image.effect_noise(size, 60).convert("RGB").save(images / name)
    ended = run("predict", [*last(folder), "--query=best", str(images)], folder)
    assert ended.code == 0, ended.output
    output = folder / "runs/run/0/predict"
    content = json.loads((output / "predictions.json").read_text())
    assert [(Path(i["file_name"]).name, i["width"], i["height"]) for i in content["images"]] == [
        ("tall.jpg", 40, 80),
        ("wide.png", 96, 48),
    ]
    assert len(content["annotations"]) == 2000
    for annotation in content["annotations"]:
        image = content["images"][annotation["image_id"]]
        assert annotation["segmentation"]["size"] == [image["height"], image["width"]]
    assert [c["id"] for c in content["categories"]] == list(range(1, 11))
    for kind in ("pictures", "queries"):
        assert sorted(p.name for p in (output / kind).iterdir()) == ["0000_tall.png", "0001_wide.png"]
    assert (output / "contact_sheet.png").exists()
    assert "objects" in ended.output


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("predict", ["--query=100"], "--query 100: the network has queries 0 to 99"),
        ("predict", ["--budget=0.5"], "--budget is for Classification, not for Detection with SOLQ; leave it out"),
        ("validate", ["--data.num_val=0"], "num_val=0"),
        ("validate", ["--model.lr_multipliers={neck: 0.1}"], "no parameter's name contains 'neck'"),
    ],
)
def test_mistakes_are_answered_in_one_line(folder: Path, command: str, options: list[str], message: str) -> None:
    picture = folder / "one.png"
    Image.new("RGB", (64, 64)).save(picture)
    paths = [str(picture)] if command == "predict" else []
    ended = run(command, [*last(folder), *options, *paths], folder)
    assert ended.code in (1, 2)
    assert message in ended.output
    assert "Traceback" not in ended.output


def test_profile(folder: Path) -> None:
    ended = run("profile", [*CONFIG, "--json", "--seconds=0", "--device=cpu", "--input_size", "3", "64", "64"], folder)
    assert ended.code == 0, ended.output
    report = json.loads(ended.output[ended.output.index("{") :])
    assert report["executed"]["linear_macs"] > 0
    assert report["dense"]["params"] == report["executed"]["params"]


def test_weights_without_a_run_are_evaluated(folder: Path) -> None:
    """As official weights are: `convert` writes them, and a config says what network they are of."""
    state = torch.load(folder / "runs/run/0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    weights = folder / "converted.safetensors"
    save_file({name.removeprefix("network."): value.clone() for name, value in state.items()}, weights)
    ended = run("validate", [*CONFIG, f"--weights={weights}"], folder)
    assert ended.code == 0, ended.output
    of_weights = json.loads((folder / "validate/metrics.json").read_text())
    ended = run("validate", last(folder), folder)
    assert ended.code == 0, ended.output
    assert of_weights == json.loads((folder / "runs/run/0/validate/metrics.json").read_text())
    for wrong in ([], [f"--weights={weights}", *last(folder)]):
        ended = run("validate", [*CONFIG, *wrong], folder)
        assert ended.code == 2
        assert "--ckpt_path" in ended.output
    other = NETWORK.replace("num_classes: 10", "num_classes: 11")
    ended = run("validate", [*CONFIG, f"--weights={weights}", f"--model.network={other}"], folder)
    assert ended.code == 2
    assert "another number of classes" in ended.output


def test_an_interrupted_training_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    argv = [*CONFIG, "--trainer.max_epochs=2", "--checkpoint.every_n_steps=1", "--experiment=run"]
    for name, sabotage in (("whole", None), ("killed", after(Detection, "training_step", 3))):
        (tmp_path / name).mkdir()
        ended = run("fit", argv, tmp_path / name, sabotage)
        assert (ended.code == 0) == (sabotage is None), ended.output
    ended = run("fit", argv, tmp_path / "killed")
    assert ended.code == 0, ended.output
    assert "resuming" in ended.output
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "killed"))
