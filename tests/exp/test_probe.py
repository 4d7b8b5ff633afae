"""`validate --probe`: features of any network, judged, kept, and refused where there is nothing to judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exp import test as test_command
from exp import validate
from models.classifiers import WideResNet
from models.self_supervised import DINO
from tests.library.refusals import refused

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--wandb=disabled"]
NETWORK = {"depth": 10, "widen": 1, "base_width": 4}
DIGITS = ["--data=Digits", "--data.batch_size=256"]
CLASSIFIER = [
    *("--model=Classification", "--model.network=models.classifiers.WideResNet"),
    *(f"--model.network.{name}={value}" for name, value in NETWORK.items()),
]
LEARNER = [
    *("--model=SelfSupervised", "--model.network=models.self_supervised.DINO"),
    "--model.network.head={out_dim: 8, hidden_dim: 8, bottleneck_dim: 4}",
    "--model.network.backbone=models.classifiers.WideResNet",
    *(f"--model.network.backbone.{name}={value}" for name, value in (NETWORK | {"num_classes": 0}).items()),
]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a classifier, in the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(WideResNet(**NETWORK).state_dict(), "weights.safetensors")
    return Path("weights.safetensors")


def told(folder: Path, split: str = "val") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "probe" / f"{split}.json").read_text())
    return found


def test_features_are_computed_once_and_told_by_both_probes(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*QUIET, *CLASSIFIER, *DIGITS, f"--weights={weights}"]
    assert validate.main([*command, "--probe=knn"]) == 0
    first = told(Path())
    assert first | {"images": 180, "known_images": 1258, "channels": 16} == first
    assert 0.5 < first["val/knn_top1"] < 1
    assert "linear_top1" not in str(first)
    assert "nearest neighbours  " in capsys.readouterr().out
    # The same again needs no network, and another probe neither.
    with monkeypatch.context() as broken:
        broken.setattr(WideResNet, "forward", None)
        assert validate.main([*command, "--probe=linear,knn"]) == 0
    both = told(Path())
    assert both["val/knn_top1"] == first["val/knn_top1"]
    assert 0.5 < both["val/linear_top1"] < 1
    # Other weights, under the same name, are others.
    save_file({name: value + 0.01 for name, value in load_file(weights).items()}, weights)
    assert validate.main([*command, "--probe=knn"]) == 0
    assert told(Path())["val/rank"] != first["val/rank"]
    assert test_command.main([*command, "--probe=knn"]) == 0
    assert told(Path(), "test")["images"] == 359


def test_a_backbone_is_enough_for_both_sides_of_a_learner(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*QUIET, *LEARNER, *DIGITS, f"--weights={weights}", "--model.evaluates=both"]
    assert validate.main([*command, "--probe=knn"]) == 0
    found = told(Path())
    assert found["val/knn_top1"] == found["val/knn_top1_teacher"] == found["val/knn_top1_student"]
    assert "weights.safetensors: taken as the backbone of student and teacher (" in capsys.readouterr().out
    message = refused(capsys, lambda: validate.main(command))
    assert "only a start for a training of this network (missing: student.projector (" in message


def test_a_learner_gives_a_classifier_its_published_backbone(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = DINO(WideResNet(**NETWORK | {"num_classes": 0}), {"out_dim": 8, "hidden_dim": 8})
    torch.nn.init.zeros_(network.student.backbone.stem.weight)
    save_file(network.state_dict(), weights)
    assert validate.main([*QUIET, *CLASSIFIER, *DIGITS, f"--weights={weights}", "--probe=knn"]) == 0
    assert "the teacher's backbone is taken (" in capsys.readouterr().out
    assert told(Path())["val/knn_top1"] > 0.5


def test_what_cannot_be_probed_is_one_line(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*QUIET, *CLASSIFIER, f"--weights={weights}"]
    message = refused(capsys, lambda: validate.main([*command, *DIGITS, "--probe=lines"]))
    assert message == "exp: --probe lines: probes: name knn or linear, or both, not ['lines']\n"
    scenes = ["--data=DigitScenes", "--data.num_train=8", "--data.num_val=4"]
    assert validate.main([*command, *scenes, "--probe=knn"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("exp: DigitScenes gives its images no class each, which probes ask for: name data of")
    plain = ["--model=Classification", "--model.network=torch.nn.Conv2d", "--model.num_classes=10"]
    plain += ["--model.network.in_channels=3", "--model.network.out_channels=10", "--model.network.kernel_size=1"]
    save_file(torch.nn.Conv2d(3, 10, 1).state_dict(), weights)
    message = refused(capsys, lambda: validate.main([*QUIET, *plain, *DIGITS, f"--weights={weights}", "--probe=knn"]))
    assert message.startswith("exp: --probe knn: Conv2d has no features to probe: neither a classifier that sees")
