"""The commands of docs/own_data.md from a folder to an exported model, in their order, on small data of each kind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from exp.__main__ import main
from tests.library.box_files import write_yolo
from tests.library.class_folders import write_class_folders
from tests.library.keypoint_files import write_keypoints
from tests.library.recipes import ROOT

SMALL = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.network.pretrained=false",
    "--weights=null",
    "--data.num_workers=0",
    "--data.batch_size=2",
    "--wandb=disabled",
]
# What writes the data, smaller networks and images than the recipe's, and what the file says.
KINDS: dict[str, tuple[Callable[[Path], None], list[str], set[str]]] = {
    "own_images": (
        lambda root: write_class_folders(root, classes=3, images=5),
        ["--model.network.name=resnet10t", "--data.size=32"],
        {"logits"},
    ),
    "own_boxes": (
        write_yolo,
        ["--model.network.backbone=resnet10t", "--model.network.frozen_stages=0", "--data.size=64"],
        {"boxes", "labels", "scores"},
    ),
    "own_masks": (
        lambda root: write_yolo(root, outlines=True),
        ["--model.network.backbone=resnet10t", "--model.network.frozen_stages=0", "--data.size=64"],
        {"boxes", "labels", "scores", "masks"},
    ),
    "own_poses": (
        lambda root: write_keypoints(root, train=6, val=3),
        ["--model.network.backbone=resnet10t", "--model.network.hidden_dim=8", "--data.size=64"],
        {"heatmaps"},
    ),
}


def commands(recipe: str) -> list[list[str]]:
    """The commands of the section, for a recipe."""
    text = (ROOT / "docs/own_data.md").read_text().split("## From a folder to an exported model\n")[1].split("\n## ")[0]
    return [
        shlex.split(line.replace("own_images", recipe)) for line in re.findall(r"^    exp (.*)$", text, re.MULTILINE)
    ]


@pytest.mark.parametrize(
    "recipe", [each if each == "own_images" else pytest.param(each, marks=pytest.mark.slow) for each in KINDS]
)
def test_the_page_pastes(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write, smaller, outputs = KINDS[recipe]
    write(tmp_path / "data/mine")
    typed = commands(recipe)
    assert [name for name, *_ in typed] == ["data", "fit", "validate", "predict", "export", "validate", "report"]
    for name, *argv in typed:
        more = [*smaller, *SMALL] if name == "fit" else []
        assert main([name, *argv, *more]) == 0, [name, *argv]
    assert (tmp_path / f"data_{recipe}/samples.png").stat().st_size > 0
    assert list((tmp_path / f"runs/{recipe}/0/predict").iterdir())
    assert (tmp_path / "mine.html").read_text().startswith("<!doctype html>")
    assert {each.name for each in onnxruntime.InferenceSession("mine.onnx").get_outputs()} == outputs
