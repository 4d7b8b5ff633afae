from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DataError, ImageFolder, ImageNet


def test_splits_classes_and_names(image_tree: Path) -> None:
    data = ImageFolder(image_tree, batch_size=4, holdout=6)
    data.setup("fit")
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.num_classes == 3
    train, val = data.source("train"), data.source("val")
    names = [source.name(i) for source in (train, val) for i in range(len(source))]
    assert sorted(names) == sorted(map(str, image_tree.rglob("*.png")))
    assert np.bincount(val.labels).tolist() == [2, 2, 2]
    for source in (train, val):
        for i in range(len(source)):
            label = source.load(i)["label"]
            assert Path(source.name(i)).parent.name == data.class_names[label]
    assert data.raw_image("train", 0)[0, 0].tolist() == [
        0,
        20 * int(Path(train.name(0)).stem),
        20 * int(Path(train.name(0)).stem),
    ]
    with pytest.raises(DataError, match="no test split"):
        data.test_dataloader()


def test_given_validation_folder_is_used_whole(image_tree: Path) -> None:
    shutil.copytree(image_tree / "train" / "bee", image_tree / "val" / "bee")
    data = ImageFolder(image_tree)
    data.setup("fit")
    assert len(data.source("train")) == 36
    assert data.source("val").labels.tolist() == [1] * 12


def test_no_holdout_means_no_validation(image_tree: Path) -> None:
    data = ImageFolder(image_tree, holdout=0)
    data.setup("fit")
    assert data.val_dataloader() == []


def test_suffixes_in_any_case_subfolders_and_nothing_else(image_tree: Path) -> None:
    deep = image_tree / "train" / "ant" / "more" / "still"
    deep.mkdir(parents=True)
    for name in ("x.JPEG", "y.TiF", "z.Webp"):
        Image.new("RGB", (8, 8)).save(deep / name, {"x": "JPEG", "y": "TIFF", "z": "WEBP"}[name[0]])
    (deep / "notes.txt").write_text("no image")
    (deep / ".hidden.png").write_text("no image")
    (image_tree / "train" / "list.csv").write_text("no folder")
    data = ImageFolder(image_tree, holdout=0)
    data.setup("fit")
    source = data.source("train")
    found = {source.name(i) for i in range(len(source))}
    assert len(found) == 39
    assert str(deep / "x.JPEG") in found
    assert source.labels.tolist() == [0] * 15 + [1] * 12 + [2] * 12


def test_names_survive_pickling_and_odd_characters(image_tree: Path) -> None:
    Image.new("RGB", (8, 8)).save(image_tree / "train" / "cat" / "Ünïcode 中 x.png")
    data = ImageFolder(image_tree, holdout=0)
    data.setup("fit")
    source = data.source("train")
    copy = pickle.loads(pickle.dumps(source))
    names = [source.name(i) for i in range(len(source))]
    assert [copy.name(i) for i in range(len(copy))] == names
    assert all(Path(name).is_file() for name in names)


def test_missing_data_set_says_what_belongs_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/train/<class>/<image>"):
        ImageFolder(tmp_path / "nowhere").setup("fit")
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train\.tar") as caught:
        ImageNet(tmp_path / "nowhere").setup("fit")
    assert str(tmp_path / "nowhere" / "val") in str(caught.value)


def test_class_folders_without_images_are_all_named(image_tree: Path) -> None:
    for name in ("empty", "void"):
        (image_tree / "train" / name).mkdir()
    (image_tree / "train" / "void" / "readme.txt").write_text("later")
    with pytest.raises(DataError, match="without images: empty, void"):
        ImageFolder(image_tree).setup("fit")
    for folder in (image_tree / "train").iterdir():
        shutil.rmtree(folder)
    with pytest.raises(DataError, match="no class folders"):
        ImageFolder(image_tree).setup("fit")


def test_unreadable_folder_is_named(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the refusal is simulated where the system would give it.
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"train/bee cannot be read: Permission denied"):
        ImageFolder(image_tree).setup("fit")


def test_evaluation_classes_must_be_known(image_tree: Path) -> None:
    shutil.copytree(image_tree / "train" / "bee", image_tree / "test" / "wasp")
    with pytest.raises(DataError, match="training split lacks: wasp"):
        ImageFolder(image_tree).setup("fit")


def test_training_images_are_not_evaluated_on(image_tree: Path) -> None:
    (image_tree / "val").symlink_to(image_tree / "train")
    for kind in (ImageFolder, ImageNet):
        with pytest.raises(DataError, match="same folder"):
            kind(image_tree).setup("fit")


def test_imagenet_official_validation_images_are_the_test_split(image_tree: Path) -> None:
    shutil.copytree(image_tree / "train", image_tree / "val")
    (image_tree / "LOC_synset_mapping.txt").write_text("ant emmet, pismire\nbee honey bee\n")
    data = ImageNet(image_tree, holdout=9, num_workers=0)
    data.setup("fit")
    assert data.class_names == ["emmet", "honey bee", "cat"]
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [27, 9, 36]
    assert all("/train/" in data.sample_name("val", i) for i in range(9))
    assert all("/val/" in data.sample_name("test", i) for i in range(36))


def test_prediction_needs_no_data_set(image_tree: Path, tmp_path: Path) -> None:
    data = ImageFolder(tmp_path / "nowhere", batch_size=5)
    files = [image_tree / "train" / "cat", image_tree / "train" / "ant" / "03.png"]
    data.predict_paths = files
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [set(batch) for batch in batches] == [{"image", "index"}] * 3
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(13))
    assert data.sample_name("predict", 12) == str(files[1])
    data.predict_paths = [tmp_path / "gone"]
    with pytest.raises(DataError, match="gone does not exist"):
        data.setup("predict")
    data.predict_paths = []
    with pytest.raises(DataError, match="Nothing to predict on"):
        data.setup("predict")
