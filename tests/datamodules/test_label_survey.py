"""Labels that mean something else are told before a training."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import DataError, ImageFolder, SegmentationFolder
from datamodules import segmentation as module
from datamodules.label_survey import survey
from datamodules.masks import EncodedMask
from datamodules.segmentation_folder import MaskClass

SIZE = (6, 8)
RED, GREEN = (200, 0, 0), (0, 200, 0)


def write(root: Path, split: str, name: str, mask: np.ndarray | Image.Image) -> Path:
    picture = Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask
    for kind, content in (("images", Image.new("RGB", picture.size)), ("masks", picture)):
        path = root / kind / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content.save(path)
    return path


def data(root: Path, *classes: MaskClass, **options: Any) -> SegmentationFolder:
    return SegmentationFolder(root, list(classes), crop=8, num_workers=0, **options)


def told(of: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        of.setup("fit")
        of.setup("fit")
    return [str(each.message) for each in caught]


def filled(*values: int) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), SIZE)


def test_a_class_that_is_taken_for_void(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(3):
            write(tmp_path, split, f"{number}", filled(0, 0, 0, 255))
    with pytest.raises(DataError, match=r"than two classes \(no\).*255, which is void, covers 25\.0%.*value: 255"):
        data(tmp_path, MaskClass("no"), MaskClass("yes")).setup("fit")
    right = data(tmp_path, MaskClass("no"), MaskClass("yes", value=255))
    assert not told(right)
    assert np.unique(right.raw_label("train", 0)).tolist() == [0, 1]
    # Other commands than fit do not look.
    data(tmp_path, MaskClass("no"), MaskClass("yes")).setup("validate")


def test_classes_without_pixels_and_of_one_image(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, "train", f"{number}", filled(0, 1, 1 if number else 2, 255))
        write(tmp_path, "val", f"{number}", filled(0, 2))
    names = [MaskClass(name) for name in ("sky", "road", "sign", "dog")]
    assert told(data(tmp_path, *names)) == [
        "1 of 4 classes have no pixel in the train split and cannot be learnt: dog. 255, which is void, covers 25.0% "
        "of the pixels: if that is a class, say so by value: 255.",
        "1 of 4 classes are in one training image only: sign.",
        "2 of 4 classes have no pixel in the val split and cannot be evaluated: road, dog.",
    ]
    # Void that was declared is meant.
    assert "255" not in " ".join(told(data(tmp_path, *names, void_values=(255,))))


def test_values_that_nobody_declared_are_told_at_the_start(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for number in range(3):
            write(tmp_path, split, f"{number}", filled(0, 1))
    bad = write(tmp_path, "test", "2", filled(0, 7))
    classes = MaskClass("no"), MaskClass("yes")
    with pytest.raises(DataError, match=r"1 label files of the test split cannot be used:\n.*values 7 are") as caught:
        data(tmp_path, *classes).setup("fit")
    assert str(bad) in str(caught.value)
    skipping = data(tmp_path, *classes, on_bad_sample="skip")
    assert len(told(skipping)) == 1
    assert list(skipping.bad_samples) == [skipping.sample_name("test", 2)]


def palette_mask(values: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(values).convert("P")
    picture.putdata(values.reshape(-1).tolist())
    picture.putpalette([part for colour in colours for part in colour])
    return picture


def test_palettes_that_contradict_the_classes_or_each_other(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, "train", f"{number}", palette_mask(filled(0, 1), RED, GREEN))
    right = MaskClass("no", colour=RED), MaskClass("yes", colour=GREEN)
    assert not told(data(tmp_path, *right, holdout=0))
    wrong = MaskClass("no", colour=GREEN), MaskClass("yes", colour=RED)
    first, second = told(data(tmp_path, *wrong, holdout=0))
    assert f"value 0, which is no, in the colour {RED} of yes" in first
    assert f"value 1, which is yes, in the colour {GREEN} of no" in second
    write(tmp_path, "train", "1", palette_mask(filled(0, 1), GREEN, RED))
    (clash,) = (each for each in told(data(tmp_path, *right, holdout=0)) if "palettes of" in each)
    assert "train/1.png" in clash
    assert "value 0 in different colours" in clash


def test_what_was_seen_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path, "train", f"{number}", filled(0, 1, number)) for number in range(5)]
    own = data(tmp_path, *(MaskClass(f"{number}") for number in range(5)), holdout=0)
    own.setup("validate")
    masks = own.source("train").all_masks()
    read = EncodedMask.read
    opened: list[Path] = []

    def counted(mask: EncodedMask) -> Any:
        opened.append(mask.path)
        return read(mask)

    monkeypatch.setattr(EncodedMask, "read", counted)
    first = survey(masks)
    assert first.images[:5].tolist() == [5, 5, 1, 1, 1]
    assert first.pixels[:6].tolist() == [96, 96, 16, 16, 16, 0]
    assert sorted(opened) == paths
    again = survey(masks)
    assert len(opened) == 5
    assert vars(again).keys() == vars(first).keys()
    assert again.pixels.tolist() == first.pixels.tolist()
    paths[4].write_bytes(b"broken")
    assert survey(masks).problems[0][0] == 4
    assert len(opened) == 10


def test_there_is_an_end_to_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(70):
        write(tmp_path, "train", f"{number:02d}", filled(0, 1))
    monkeypatch.setattr(module, "SURVEY_SECONDS", 0.0)
    (remark,) = told(data(tmp_path, *(MaskClass(name) for name in "abc"), holdout=0))
    assert remark.endswith("cannot be learnt: c. (Of 70 label files, 64 were looked at.)")


def test_class_folders(image_tree: Path) -> None:
    assert not told(ImageFolder(image_tree))
    for number in range(1, 12):
        (image_tree / f"train/cat/{number:02d}.png").unlink()
    shutil.copytree(image_tree / "train/ant", image_tree / "val/ant")
    assert told(ImageFolder(image_tree)) == [
        "1 of 3 classes are in one training image only: cat.",
        "2 of 3 classes have no image in the val split and cannot be evaluated: bee, cat.",
    ]
