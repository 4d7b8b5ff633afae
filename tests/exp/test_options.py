"""Every training option that the docs promise works from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from datamodules import Digits
from exp.loggers import MetricsTable
from exp.summary import result_lines
from tests.library.runner import SMALL, run

OPTIONS = {
    "sgd-multistep": [
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.1",
        "--model.optimizer.momentum=0.9",
        "--model.schedule=MultiStep",
        "--model.schedule.milestones=[1, 2]",
    ],
    "lamb": ["--model.optimizer=timm.optim.Lamb", "--model.optimizer.lr=0.01"],
    "lars": ["--model.optimizer=timm.optim.Lars", "--model.optimizer.lr=0.5"],
    "bf16-clip": ["--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1.0"],
    "timm-layer-decay": ["--model.layer_decay.decay=0.8"],
    "convnext-layer-decay": ["--model.layer_decay={decay: 0.7, rule: convnext_layer_wise, num_layers: 6}"],
    "augment": [
        "--model.random_erasing=0.5",
        "--model.label_smoothing=0.1",
        "--model.mix.cutmix=1.0",
        "--data.train_transforms=[{class_path: datamodules.transforms.RandAugment}]",
    ],
    "channels-last": ["--model.channels_last=true"],
    "scaled-lr": ["--model.reference_batch=512", "--trainer.accumulate_grad_batches=2"],
    "early-stopping": [
        "--trainer.callbacks=lightning.pytorch.callbacks.EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
    ],
    "mid-epoch-validation": ["--trainer.val_check_interval=0.5"],
    "ladder": [
        "--model.network={class_path: models.classifiers.timm_classifier, init_args: {name: ladder_r50_4_width, "
        "num_classes: 10, options: {patch_size: 1, depths: [1, 1, 1, 1], dims: [4, 4, 8, 8]}}}",
    ],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option_trains(name: str, tmp_path: Path) -> None:
    ended = run("fit", [*SMALL, "--experiment=run", *OPTIONS[name]], tmp_path)
    assert ended.code == 0, ended.output
    table = MetricsTable(tmp_path / "runs/run/0/metrics.csv")
    _, losses = table.series("train/loss")
    assert losses[-1] < losses[0]
    if name == "scaled-lr":
        assert max(table.series("train/lr")[1]) == pytest.approx(0.01 * 256 / 512)
    if name == "mid-epoch-validation":
        assert len(table.series("val/top1")[0]) == 6


@pytest.mark.slow
def test_compiled_network_trains_and_is_saved_under_the_same_names(tmp_path: Path) -> None:
    import torch

    for name, extra in (("plain", []), ("compiled", ["--model.compile=true"])):
        ended = run("fit", [*SMALL, f"--experiment={name}", "--trainer.max_epochs=2", *extra], tmp_path)
        assert ended.code == 0, ended.output
    plain, compiled = (
        torch.load(tmp_path / f"runs/{name}/0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()


def test_a_checkpoint_is_enough_to_evaluate_and_predict(tmp_path: Path) -> None:
    """fit, validate, test and predict, the latter three from the checkpoint alone."""
    options = ["--test=true", "--wandb=offline", "--trainer.max_epochs=2", "--experiment=run"]
    ended = run("fit", [*SMALL, *options], tmp_path)
    assert ended.code == 0, ended.output
    folder = tmp_path / "runs/run/0"
    for name in (
        "config.yaml",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "plots/learning_curve.png",
        "plots/confusion_matrix.png",
        "plots/worst_mistakes.png",
    ):
        assert (folder / name).stat().st_size > 0
        assert name in ended.output
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    images = sorted(str(p.parent.name) for p in folder.glob("wandb/offline-run-*/files/media/images/**/*.png"))
    # The learning curve, then mistakes and confusions of the last validation and of the test.
    assert images == ["images", "test", "test", "val", "val"]
    state = json.loads((folder / "run.json").read_text())
    assert state["status"] == "finished"
    checkpoint = "--ckpt_path=runs/run/0/checkpoints/best.ckpt"
    tested = run("test", [checkpoint], tmp_path)
    assert tested.code == 0, tested.output
    metrics = json.loads((folder / "test/metrics.json").read_text())
    assert metrics == pytest.approx(state["test"])
    validated = run("validate", [checkpoint], tmp_path)
    assert validated.code == 0, validated.output
    assert json.loads((folder / "validate/metrics.json").read_text())["val/top1"] == pytest.approx(state["best"])

    images = tmp_path / "images"
    images.mkdir()
    data = Digits()
    for i in range(5):
        Image.fromarray(data.raw_image("test", i)).save(images / f"{i}.png")
    predicted = run("predict", [checkpoint, "images", "images/0.png"], tmp_path)
    assert predicted.code == 0, predicted.output
    rows = (folder / "predict/predictions.csv").read_text().splitlines()
    assert rows[0].startswith("file,label_1,probability_1,")
    assert {row.split(",")[0] for row in rows[1:]} == {f"images/{i}.png" for i in range(5)}
    assert (folder / "predict/contact_sheet.png").stat().st_size > 0
    (images / "broken.png").write_bytes(b"not an image")
    broken = run("predict", [checkpoint, "images"], tmp_path)
    assert broken.code == 1
    assert "images/broken.png" in broken.output
    assert "Traceback" not in broken.output


def test_weights_of_another_run_are_a_start(tmp_path: Path) -> None:
    assert run("fit", [*SMALL, "--experiment=first", "--trainer.max_epochs=2"], tmp_path).code == 0
    weights = "--weights=runs/first/0/checkpoints/best.ckpt"
    short = ["--trainer.max_epochs=1", "--model.schedule=Constant", "--model.schedule.warmup_epochs=0"]
    fresh = run("fit", [*SMALL, *short, "--experiment=fresh"], tmp_path)
    ended = run("fit", [*SMALL, *short, "--experiment=second", weights], tmp_path)
    assert ended.code == fresh.code == 0, ended.output
    first_loss = {
        name: MetricsTable(tmp_path / f"runs/{name}/0/metrics.csv").series("train/loss")[1][0]
        for name in ("fresh", "second")
    }
    assert first_loss["second"] < first_loss["fresh"]
    missing = run("fit", [*SMALL, "--weights=nowhere.pth"], tmp_path)
    assert missing.code == 2
    assert "nowhere.pth: no such file" in missing.output


def test_metrics_of_exits_and_budgets_share_a_line() -> None:
    results = {
        "test/loss": 0.25,
        "test/top1": 0.9,
        "test/top1_exit0": 0.5,
        "test/top1_exit1": 0.7,
        "test/top1_at_50": 0.8,
    }
    assert result_lines(results) == [
        "test/loss [bold]0.2500[/]  test/top1 [bold]0.9000[/]",
        "test/top1 by exit  0 [bold]0.5000[/]  1 [bold]0.7000[/]",
        "test/top1 at a budget of  50 % [bold]0.8000[/]",
    ]
