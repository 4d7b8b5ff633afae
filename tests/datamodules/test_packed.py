from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import DataError, PackedImages
from datamodules.decoding import Encoded
from tests.library.packed_files import arrays, pack


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_and_labels_of_each_split(tmp_path: Path, compressed: bool, workers: int) -> None:
    data = PackedImages(pack(tmp_path / "pack", compressed), batch_size=10, holdout=8, num_workers=workers)
    data.setup("fit")
    assert data.class_names == ["class 0", "class 1", "class 2", "class 3"]
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [32, 8, 40]
    for batch in data.test_dataloader():
        assert batch["image"].shape[1:] == (3, 32, 32)
        assert batch["image"][:, 0, 0, 0].tolist() == [6 * i for i in batch["index"].tolist()]
        assert batch["label"].tolist() == [i // 10 for i in batch["index"].tolist()]
    assert data.sample_name("test", 17) == "pack/test #17"
    assert data.raw_image("test", 17)[5, 5].tolist() == [102, 102, 102]


def test_fewer_images_to_train_on(tmp_path: Path) -> None:
    """As many of each class, the same each time, none of those held out."""
    folder = pack(tmp_path / "pack")
    data, all_of_them = PackedImages(folder, holdout=8, num_train=12), PackedImages(folder, holdout=8, num_train=32)
    for module in (data, all_of_them):
        module.setup("fit")
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [12, 8, 40]
    assert np.bincount(data.source("train").labels).tolist() == [3, 3, 3, 3]
    names = {split: {data.sample_name(split, i) for i in range(len(data.source(split)))} for split in ("train", "val")}
    assert len(names["train"]) == 12
    assert not names["train"] & names["val"]
    assert len(all_of_them.source("train")) == 32
    with pytest.raises(DataError, match=r"num_train=33: there are 32 samples"):
        PackedImages(folder, holdout=8, num_train=33).setup("fit")


def test_unpacked_once_and_anew_when_the_file_changes(tmp_path: Path, cache: Path) -> None:
    folder = pack(tmp_path / "pack")
    PackedImages(folder).setup("fit")
    made = {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")}
    assert len(made) == 10
    PackedImages(folder).setup("fit")
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")} == made
    pack(folder, labels=np.zeros(40, np.int64))
    data = PackedImages(folder, holdout=0)
    data.setup("fit")
    assert not data.source("train").labels.any()
    assert not list(cache.glob(".draft-*"))


def test_small_images_are_decoded_once(tmp_path: Path) -> None:
    """As they would be one by one; all stay encoded where one is larger, of another size or damaged."""
    encoded = arrays(form="JPEG")
    small = PackedImages(pack(tmp_path / "small", **encoded))
    small.setup("fit")
    for place in (0, 39):
        start, end = encoded["offsets"][[place, place + 1]]
        pixels = small.source("test").load(place)["image"]
        np.testing.assert_array_equal(pixels, Encoded(encoded["data"][start:end].tobytes()).decode())
    damaged = encoded["data"].copy()
    damaged[encoded["offsets"][7] : encoded["offsets"][8]] = 0
    mixed = arrays(sizes=[32] * 39 + [33])
    for name, content in {
        "large": arrays(sizes=[65] * 40),
        "mixed": mixed,
        "damaged": encoded | {"data": damaged},
    }.items():
        data = PackedImages(pack(tmp_path / name, **content))
        data.setup("fit")
        assert isinstance(data.source("test").load(0)["image"], Encoded), name


def test_many_may_unpack_at_once(tmp_path: Path, cache: Path) -> None:
    folder = pack(tmp_path / "pack")
    start = threading.Barrier(4)

    def set_up(_: int) -> int:
        start.wait()
        data = PackedImages(folder, holdout=0)
        data.setup("fit")
        return int(data.raw_image("train", 39)[0, 0, 0])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(set_up, range(4))) == [234] * 4
    assert len(list(cache.iterdir())) == 2


def test_class_names_default_to_numbers(tmp_path: Path) -> None:
    data = PackedImages(pack(tmp_path / "pack", classes=None))
    data.setup("fit")
    assert data.class_names == ["0", "1", "2", "3"]


GOOD = arrays()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": GOOD["labels"][:-1]}, "39 labels and 41 offsets disagree"),
        ({"labels": GOOD["labels"] + 1}, r"label 4 of image 30 is not one of 4 classes"),
        ({"labels": GOOD["labels"] - 1}, r"label -1 of image 0 is not one of 4 classes"),
        ({"labels": GOOD["labels"].astype(float)}, "labels is float64"),
        ({"labels": None}, "lacks the arrays labels"),
        ({"offsets": GOOD["offsets"] + 5}, "offsets run from 5"),
        ({"offsets": GOOD["offsets"][[0, 2, 1, *range(3, 41)]]}, "offsets fall .* at image 1"),
        ({"data": GOOD["data"][:-7]}, "but data has"),
        ({"data": GOOD["data"].astype(np.int16)}, "data is int16"),
        ({"labels": np.empty(0, int), "offsets": np.zeros(1, int), "data": np.empty(0, np.uint8)}, "at least one"),
        ({"labels": np.array([{}] * 40)}, "not a readable"),
    ],
)
def test_contradictions_are_found_before_training(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    folder = pack(tmp_path / "pack", **changed)
    with pytest.raises(DataError, match=message) as caught:
        PackedImages(folder).setup("fit")
    assert "train.npz" in str(caught.value)


def test_missing_and_torn_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.npz does not exist\. Packed images need"):
        PackedImages(tmp_path).setup("fit")
    folder = pack(tmp_path / "pack")
    content = (folder / "train.npz").read_bytes()
    (folder / "train.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable"):
        PackedImages(folder).setup("fit")


def test_splits_with_different_classes(tmp_path: Path) -> None:
    folder = pack(tmp_path / "pack")
    np.savez(folder / "test.npz", **(arrays() | {"classes": np.array(list("abcd"))}))
    with pytest.raises(DataError, match="different classes"):
        PackedImages(folder).setup("fit")


def test_a_bad_record_is_named(tmp_path: Path) -> None:
    data = GOOD["data"].copy()
    data[GOOD["offsets"][7] : GOOD["offsets"][7] + 30] = 0
    module = PackedImages(pack(tmp_path / "pack", data=data))
    module.setup("test")
    with pytest.raises(DataError, match=r"pack/test #7 \(index 7, label 0\): not an image"):
        list(module.test_dataloader())


@pytest.mark.skipif("EXP_DATA" not in os.environ, reason="needs EXP_DATA, the folder of development data")
def test_packed_cifar10() -> None:
    data = PackedImages(Path(os.environ["EXP_DATA"]) / "cifar10", batch_size=500)
    data.setup("fit")
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [45_000, 5000, 10_000]
    assert np.bincount(data.source("val").labels).tolist() == [500] * 10
    assert data.sample_name("test", 17) == "cifar10/test #17"
