"""Boxes of one's own: the same data in every layout are the same data, and what is wrong is named where it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import DataError, OwnBoxes
from datamodules.errors import OptionError
from tests.library.box_files import LAYOUTS, NAMES, OBJECTS, write_coco, write_image, write_voc, write_yolo


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXP_CACHE", str(tmp_path / "cache"))


def opened(root: Path, **options: Any) -> OwnBoxes:
    data = OwnBoxes(root, **{"num_workers": 0} | options)
    data.setup("validate")
    return data


def objects(data: OwnBoxes, split: str) -> list[list[tuple[int, tuple[float, ...]]]]:
    source = data.source(split)
    found = []
    for i in range(len(source)):
        target = source.load(i)["target"]
        labels, boxes = target["labels"].tolist(), target["boxes"].round(3).tolist()
        found.append([(label, tuple(box)) for label, box in zip(labels, boxes, strict=True)])
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_by_looking(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "mine"
    LAYOUTS[layout](root)
    data = opened(root)
    assert data.class_names == NAMES
    assert {split: objects(data, split) for split in OBJECTS} == OBJECTS
    assert not data.has("test")
    assert data.described().endswith(f", 2 classes, 3 train, 2 val images (layout: {layout})")
    assert opened(root, layout=layout).described() == data.described()
    other = "voc" if layout != "voc" else "yolo"
    with pytest.raises(DataError, match=rf"has no data in the layout {other}. Wanted are COCO's JSON"):
        opened(root, layout=other)
    # What is evaluated against names the categories.
    assert [one["name"] for one in data.ground_truth("val")["categories"]] == NAMES


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_of_every_layout(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "mine"
    LAYOUTS[layout](root)
    data = opened(root, batch_size=3, size=64)
    (batch,) = data.train_dataloader()
    assert all(image.shape[0] == 3 and max(image.shape) <= 64 for image in batch["image"])
    (batch,) = data.val_dataloader()
    assert [tuple(image.shape) for image in batch["image"]] == [(3, 43, 64)] * 2
    np.testing.assert_allclose(batch["target"][0]["boxes"], np.array([[12, 8, 24, 32]]) * 64 / 60, atol=0.6)


def test_validation_images_are_held_out(tmp_path: Path) -> None:
    write_coco(tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine/valid")
    data = opened(tmp_path / "mine", holdout=1)
    assert (len(data.source("train")), len(data.source("val"))) == (2, 1)
    assert "val held out from train" in data.described()
    names = {data.source(split).name(i) for split in ("train", "val") for i in range(len(data.source(split)))}
    assert len(names) == 3
    assert len(data.ground_truth("val")["images"]) == 1
    assert opened(tmp_path / "mine", holdout=0)._sources["val"] is None


def test_yolo_as_it_comes(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_yolo(root)
    # Lists of files, absolute or not; a split of several folders.
    (root / "list.txt").write_text(f"./images/train/0.png\n{root}/images/train/1.png\n")
    (root / "data.yaml").write_text(f"train: [list.txt, images/val]\nval: ../images/val\nnames: {NAMES}\n")
    data = opened(root / "data.yaml")
    assert objects(data, "train") == [*OBJECTS["train"][:2], *OBJECTS["val"]]
    (root / "data.yaml").unlink()
    # Without names, classes are numbers.
    assert opened(root).class_names == ["0", "1"]
    (root / "classes.txt").write_text("cat\ndog\n")
    assert opened(root).class_names == NAMES
    # A changed label file is read again.
    (root / "labels/train/1.txt").write_text("0 0.5 0.5 0.5 0.5")
    assert objects(opened(root), "train")[1] == [(0, (15.0, 10.0, 45.0, 30.0))]


def test_outlines_become_masks(tmp_path: Path) -> None:
    write_yolo(tmp_path / "outlines", outlines=True)
    data = opened(tmp_path / "outlines", masks=True, train_transforms=[], batch_size=3)
    assert objects(data, "train") == OBJECTS["train"]
    (batch,) = data.train_dataloader()
    masks = {len(target["masks"]): target["masks"] for target in batch["target"]}
    assert masks[2].flatten(1).sum(1).tolist() == [24 * 16, 30 * 30]
    write_yolo(tmp_path / "boxes")
    with pytest.raises(DataError, match=r"data.yaml: no object has an outline, which masks: true needs"):
        opened(tmp_path / "boxes", masks=True)


def test_what_is_wrong_in_yolo_is_named_by_line(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_yolo(root)
    lines = [
        "0 0.5 0.5 0.2 0.2",
        "2 .5 .5 .2 .2",
        "0 0.5 0.5 0",
        "1 320 200 50 50",
        "cat 1 1 1 1",
        "0 .5 .5 0 .2",
        "",
        "0 nan 0 1 1",
    ]
    (root / "labels/train/0.txt").write_text("\n".join(lines))
    (root / "images/train/2.png").write_bytes(b"no image")
    reasons = [
        "data.yaml: 7 records cannot be used:",
        "labels/train/0.txt, line 2: the class is 2, and names has 2, counted from 0",
        "line 3: it has 3 numbers after the class",
        "line 4: it holds 320: numbers are shares of the image, from 0 to 1, and no pixels",
        "line 5: it holds something else than numbers",
        "line 6: its box is empty",
        "line 8: it holds a number that is not finite",
        "images/train/2.png: ",
    ]
    with pytest.raises(DataError, match=r"(?s)" + ".*".join(reasons)):
        opened(root)
    with pytest.warns(UserWarning, match=r"7 records cannot be used and are left out"):
        data = opened(root, on_bad_sample="skip")
    assert [len(each) for each in objects(data, "train")] == [1, 1]
    (root / "data.yaml").write_text("train: pictures\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"data.yaml: train is pictures, and neither .*mine/pictures nor .* is there"):
        opened(root)
    (root / "data.yaml").write_text("train: images/train\nnames: {0: cat, 2: dog}\n")
    with pytest.raises(DataError, match=r"names has 2 classes, and none of number 1"):
        opened(root)


def test_what_is_wrong_in_voc_is_named(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_voc(root)
    file = root / "Annotations/train_0.xml"
    good = file.read_text()
    file.write_text(good.replace("<xmin>7</xmin>", "<xmin>90</xmin>").replace("<name>dog</name>", "<name/>"))
    (root / "Annotations/train_1.xml").write_text("<annotation>")
    (root / "Annotations/train_2.xml").write_text(good.replace("<width>60", "<width>80"))
    reasons = [
        "4 records cannot be used",
        "train_0.xml, object 1: its box is empty: from 90, 5 to 30, 20",
        "train_0.xml, object 2: it has no name",
        "train_1.xml: it is no XML: ",
        "train_2.xml: it is of an image of 80x40 pixels, and the image has 60x40",
    ]
    with pytest.raises(DataError, match=r"(?s)" + ".*".join(reasons)):
        opened(root)
    file.write_text(good.replace("<difficult>0", "<difficult>1", 1))
    data = opened(root, on_bad_sample="skip")
    # A difficult object is not learnt, and no detector is blamed for it.
    assert objects(data, "train")[0] == OBJECTS["train"][0][1:]
    assert [one["iscrowd"] for one in data.ground_truth("train")["annotations"]] == [1, 0]
    (root / "ImageSets/Main/val.txt").write_text("val_0\nval_9\n")
    with pytest.raises(DataError, match=r"val.txt lists 1 images that are not in .*, such as val_9"):
        opened(root)


def test_cocos_files_are_found_or_named(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_coco(root)
    (root / "annotations").mkdir()
    (root / "train/_annotations.coco.json").rename(root / "annotations/instances_train2017.json")
    (root / "annotations/captions_train2017.json").write_text('{"images": [], "annotations": []}')
    assert objects(opened(root), "train") == OBJECTS["train"]
    (root / "annotations/instances_train_old.json").write_text('{"images": []}')
    with pytest.raises(
        DataError, match=r"several annotation files of the train split .*name the one by train_annotations"
    ):
        opened(root)
    named = {
        "train_annotations": "annotations/instances_train2017.json",
        "val_annotations": "valid/_annotations.coco.json",
    }
    assert {split: objects(opened(root, **named), split) for split in OBJECTS} == OBJECTS
    write_image(root / "elsewhere/0.png", 0)
    with pytest.raises(DataError, match=r"elsewhere"):
        opened(root, **named, train_images="elsewhere")
    content = json.loads((root / "valid/_annotations.coco.json").read_text())
    content["images"][0]["file_name"] = "none.png"
    (root / "valid/_annotations.coco.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"its first image is none.png, which is in none of .* Name the folder by val_images"
    ):
        opened(root, **named)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist. Wanted are COCO's JSON"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no annotations. Wanted are"):
        opened(tmp_path)
    with pytest.raises(OptionError, match=r"size=8"):
        OwnBoxes(tmp_path, size=8)
