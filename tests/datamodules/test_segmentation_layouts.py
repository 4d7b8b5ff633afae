"""The other layouts of images and label files: ADE20K, one's own, digit streets, CamVid; and configs of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from datamodules import ADE20K, CamVid, DataError, DataModule, DigitStreets, SegmentationFolder
from datamodules.digit_streets import CANVAS_SEED
from datamodules.segmentation_folder import MaskClass
from tests.library.images import image_size


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_ade20k_reduces_the_zero_label(tmp_path: Path) -> None:
    for folder in ("training", "validation"):
        for number, size in ((1, (20, 30)), (2, (24, 18))):
            save(tmp_path / "images" / folder / f"ADE_{number}.jpg", np.zeros((*size, 3), np.uint8))
            values = np.zeros(size, np.uint8)
            values[0, :3] = 1, 150, 2
            save(tmp_path / "annotations" / folder / f"ADE_{number}.png", values)
    data = ADE20K(tmp_path, batch_size=2, num_workers=0)
    assert data.raw_label("train", 0)[:2, :4].tolist() == [[0, 149, 1, 255], [255] * 4]
    assert (data.num_classes, data.class_names[0], data.label_ids[0], data.has("test")) == (150, "class 1", 1, False)
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (2, 3, 512, 512)
    assert [tuple(b["label"].shape) for b in data.val_dataloader()] == [(1, 20, 30), (1, 24, 18)]
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    lines = [f"{n}\t0.1\t10\t1\t1\tthing {n}, other name\n" for n in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text(head + "".join(lines))
    named = ADE20K(tmp_path)
    named.setup("fit")
    assert (named.class_names[0], named.class_names[149]) == ("thing 1", "thing 150")
    (tmp_path / "objectInfo150.txt").write_text(head + "".join(lines[:-1]))
    with pytest.raises(DataError, match="names 149 classes, not 150"):
        ADE20K(tmp_path).setup("fit")
    with pytest.raises(DataError, match=r"ADE20K is not complete: .*images/training.* missing"):
        ADE20K(tmp_path / "images").setup("fit")


def own(root: Path, **options: Any) -> SegmentationFolder:
    classes = [MaskClass("floor", colour=(9, 9, 9)), MaskClass("wall", value=5)]
    given = {"classes": classes, "batch_size": 2, "crop": 8, "num_workers": 0, "mask_suffix": "_mask"}
    return SegmentationFolder(root, **given | options)


@pytest.mark.parametrize("splits", [(), ("train",), ("train", "val", "test")])
def test_own_images_and_masks(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits or ("",):
        for number in range(10):
            save(tmp_path / "images" / split / f"{number}.jpg", np.zeros((8, 9, 3), np.uint8))
            values = np.array([[0, 5, 255, 40]], np.uint8).repeat(8, 0)
            save(tmp_path / "masks" / split / f"{number}_mask.png", np.pad(values, ((0, 0), (0, 5))))
    data = own(tmp_path, void_values=(40,), holdout=3)
    assert data.raw_label("train", 0)[0, :5].tolist() == [0, 1, 255, 255, 0]
    held = "val" not in splits
    assert (len(data.source("train")), len(data.source("val"))) == ((7, 3) if held else (10, 10))
    assert data.has("test") == ("test" in splits)
    names = {data.sample_name(split, i) for split, n in (("train", 7), ("val", 3)) for i in range(n)}
    assert len(names) == 10
    assert data.palette.tolist() == [[9, 9, 9], [0, 128, 0]]
    batch = next(iter(data.train_dataloader()))
    assert (batch["label"].dtype, batch["label"].shape) == (torch.uint8, (2, 8, 8))
    assert next(iter(data.val_dataloader()))["label"].shape == (1, 8, 9)
    with pytest.raises(DataError, match="label values 40 are outside the palette"):
        list(own(tmp_path).train_dataloader())


def test_frequencies_are_of_the_classes_that_are_named(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / "images" / f"{number}.png", np.zeros((2, 4, 3), np.uint8))
        save(tmp_path / "masks" / f"{number}_mask.png", np.array([[1, 1, 1, 2]] * 2, np.uint8))
    first, second = [MaskClass("a", 1), MaskClass("b", 2)], [MaskClass("b", 2), MaskClass("a", 1)]
    assert own(tmp_path, classes=first, holdout=0).class_frequencies().tolist() == [0.75, 0.25]
    assert own(tmp_path, classes=second, holdout=0).class_frequencies().tolist() == [0.25, 0.75]


def test_own_layout_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images is missing. .*masks/train/<name>_mask\.png"):
        own(tmp_path).setup("fit")
    for folder in ("images", "masks"):
        (tmp_path / folder / "val").mkdir(parents=True)
    with pytest.raises(DataError, match="has val and no train"):
        own(tmp_path).setup("fit")
    with pytest.raises(ValueError, match="value 1 of label files has 2 meanings"):
        own(tmp_path, classes=[MaskClass("a", value=1), MaskClass("b")])
    with pytest.raises(ValueError, match="0 names"):
        own(tmp_path, classes=[])
    with pytest.raises(ValueError, match="crop=0"):
        own(tmp_path, crop=0)


def test_digit_streets_are_the_same_for_everyone(cache: Path) -> None:
    data = DigitStreets(num_train=8, num_val=3, num_test=3, batch_size=4, size=48, digit_size=(12, 20))
    (first, second), val = list(data.train_dataloader()), list(data.val_dataloader())
    assert first["image"].shape == (4, 3, 48, 48)
    assert [len(batch["label"]) for batch in val] == [3]
    assert (data.num_classes, image_size(data), data.has("test")) == (11, (3, 48, 48), True)
    # Digits are bright, and what the labels call background is not.
    label, grey = val[0]["label"], val[0]["image"].float().mean(1)
    assert 0.01 < (label > 0).float().mean() < 0.5
    assert grey[label > 0].mean() > 2 * grey[label == 0].mean()
    assert set(torch.cat([first["label"], second["label"]]).unique().tolist()) <= {*range(11), 255}
    canvas = data.painters["val"].paint(np.random.Generator(np.random.PCG64([CANVAS_SEED, 1, 0])))
    assert len(canvas.labels)
    for digit, mask in zip(canvas.labels, canvas.masks, strict=True):
        assert {data.class_names[value] for value in label[0].numpy()[mask]} == {str(digit)}
    written = {file: file.stat().st_mtime_ns for file in cache.rglob("*.png")}
    assert len(written) == 2 * (8 + 3 + 3)
    ids = np.asarray(Image.open(next(file for file in written if "labelIds" in file.name)))
    assert set(np.unique(ids).tolist()) <= set(range(1, 12))
    again = DigitStreets(num_train=8, num_val=3, num_test=3, batch_size=4, size=48, digit_size=(12, 20))
    assert torch.equal(next(iter(again.val_dataloader()))["image"], val[0]["image"])
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.png")} == written
    with pytest.raises(ValueError, match="num_val=0"):
        DigitStreets(num_val=0)


CONFIG = """
data:
  class_path: datamodules.SegmentationFolder
  init_args:
    root: somewhere
    classes:
      - {name: sky, colour: [1, 2, 3]}
      - {name: road, value: 4}
    void_values: [0, 9]
    void_colours: [[0, 0, 0]]
    train_transforms:
      - {class_path: datamodules.transforms.RandomLongSide, init_args: {long_side: 128, scales: [0.5, 1.5]}}
      - {class_path: datamodules.transforms.ClassBalancedCrop, init_args: {height: 32, width: 64, fill: [1, 1, 1]}}
      - {class_path: datamodules.transforms.PhotometricDistortion, init_args: {contrast: [0.8, 1.2]}}
      - {class_path: albumentations.HorizontalFlip}
"""


def test_everything_can_be_said_in_a_config() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    with pytest.raises(ValueError, match="value 0 of label files has 2 meanings"):
        parser.instantiate(parser.parse_string(CONFIG))
    data = parser.instantiate(parser.parse_string(CONFIG.replace("[0, 9]", "[9]"))).data
    assert data.label_map.ids == (0, 4)
    assert data.label_map.void_colours == ((0, 0, 0),)
    image = {"image": np.zeros((50, 90, 3), np.uint8)}
    assert data.pipeline(data.train_transforms)(image, 0, 0)["image"].shape == (32, 64, 3)


@pytest.mark.skipif("EXP_DATA" not in os.environ, reason="needs EXP_DATA, the folder of development data")
def test_camvid() -> None:
    data = CamVid(Path(os.environ["EXP_DATA"]) / "camvid", batch_size=4, num_workers=0, class_weighting="frequency")
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [367, 101, 233]
    batch = next(iter(data.train_dataloader()))
    assert (batch["image"].shape, batch["label"].shape) == ((4, 3, 352, 480), (4, 352, 480))
    # Shares of the pack's README, in percent.
    shares = [16.85, 23.26, 0.98, 31.66, 4.49, 9.72, 1.17, 1.13, 5.87, 0.64, 0.29]
    np.testing.assert_allclose(100 * data.class_frequencies(), shares, atol=0.0051)
