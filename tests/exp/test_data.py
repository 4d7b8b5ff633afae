"""`exp data`: what it counts, what it finds wrong, and what it draws, of data of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exp import data
from exp.lookalikes import alike, fingerprint
from tests.library.box_files import write_yolo
from tests.library.class_folders import write_class_folders
from tests.library.recipes import ROOT


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")


def looked(config: str, *options: str) -> tuple[int, dict[str, Any], set[str]]:
    """Exit code, report and pictures of the command."""
    code = data.main([f"--config=configs/{config}.yaml", "--output=seen", *options])
    files = {path.name for path in Path("seen").iterdir()}
    assert all(Image.open(f"seen/{name}").size[0] > 100 for name in files if name.endswith(".png"))
    return code, json.loads(Path("seen/data.json").read_text()), files


def test_images_with_faults_and_twins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_class_folders(tmp_path / "mine", classes=3, images=5, size=40)
    (tmp_path / "mine/val/kind 0").mkdir(parents=True)
    # The same picture, smaller and compressed anew, in another split.
    twin = Image.open(tmp_path / "mine/train/kind 1/3.png")
    blurred = Image.fromarray(np.asarray(twin.resize((4, 4)).resize((300, 300), Image.Resampling.BICUBIC)))
    blurred.save(tmp_path / "mine/train/kind 1/3.png")
    blurred.resize((200, 200)).save(tmp_path / "mine/val/kind 0/copy.jpg", quality=80)
    (tmp_path / "mine/train/kind 2/4.png").write_bytes(b"no image")
    (tmp_path / "mine/train/kind 2/5.png").write_bytes(b"")
    code, report, files = looked("own_images", "--data.root=mine", "--data.size=32")
    assert code == 1
    assert files == {"data.json", "samples.png", "augmented.png", "classes.png", "sizes.png", "alike.png"}
    assert report["described"].startswith("mine: class folders, 3 classes, 16 train, 1 val images")
    assert report["classes"]["kind 2"] == {"train": {"images": 6}, "val": {"images": 0}}
    train = report["splits"]["train"]
    assert (train["samples"], train["opened"]) == (16, 14)
    assert train["images"] == {"smallest": [40, 40], "median": [40, 40], "largest": [300, 300]}
    (pair,) = report["alike"]
    assert pair == {"one": "mine/train/kind 1/3.png", "other": "mine/val/kind 0/copy.jpg", "splits": ["train", "val"]}
    assert sum(kind["records"] for kind in report["faults"].values()) == 2
    said = capsys.readouterr().out
    assert "2 of 3 classes have no image in the val split" in said
    assert "1 pairs of images look alike, 1 of them in different splits" in said
    assert "mine/train/kind 2/4.png: " in said


def test_boxes_and_outlines(tmp_path: Path) -> None:
    write_yolo(tmp_path / "mine", outlines=True)
    (tmp_path / "mine/labels/val/0.txt").write_text("0 9 9 9 9\n5 .5 .5 .1 .1\n7 .5 .5 .1 .1")
    code, report, files = looked("own_masks", "--data.root=mine", "--data.size=64")
    assert (code, "samples.png" in files, "augmented.png" in files) == (1, True, True)
    assert report["classes"]["dog"]["train"] == {"images": 2, "objects": 2}
    assert report["splits"]["train"]["boxes"]["largest"] == [30, 30]
    # Of one kind are those that differ in names and numbers alone.
    assert sorted(kind["records"] for kind in report["faults"].values()) == [1, 2]


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("pose/hrnet_figures", ["num_train=6", "num_val=3"]),
        ("segmentation/dynamic_routing_digits", ["num_train=4", "num_val=3"]),
        ("semi_supervised/fixmatch_digits", []),
    ],
)
def test_data_of_other_kinds(config: str, options: list[str]) -> None:
    code, report, files = looked(config, *(f"--data.{option}" for option in options), "--images=20")
    assert (code, report["faults"]) == (0, {})
    assert {"samples.png", "augmented.png", "classes.png"} <= files
    assert sum(each["train"]["images"] for each in report["classes"].values()) > 0


def test_data_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main(["--config=configs/own_boxes.yaml", "--data.root=nowhere"]) == 1
    assert capsys.readouterr().err.startswith("exp: nowhere does not exist. Wanted are COCO's JSON files")


def test_look_alikes_are_found_among_many_and_blank_ones_do_no_harm() -> None:
    random = np.random.default_rng(0)
    many = [np.repeat(np.repeat(random.integers(0, 256, (9, 9, 3), np.uint8), 8, 0), 8, 1) for _ in range(200)]
    noisy = (many[7].astype(np.int16) + random.integers(-4, 5, many[7].shape)).clip(0, 255).astype(np.uint8)
    prints = [fingerprint(image) for image in [*many, noisy, noisy[::-1]]]
    assert alike(*zip(*prints, strict=True)) == [(7, 200)]
    blank = [fingerprint(np.full((20, 20, 3), value, np.uint8)) for value in [0] * 300 + [255]]
    pairs = alike(*zip(*blank, strict=True))
    assert 300 <= len(pairs) <= 300 * 50
    assert all(300 not in pair for pair in pairs)
