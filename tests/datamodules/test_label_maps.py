"""What values of label files mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import CamVid, Cityscapes, DataError
from datamodules.label_maps import LabelMap, voc_colours
from datamodules.masks import EncodedMask

RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (128, 128, 128)
TWO = LabelMap(("cat", "dog"), (RED, GREEN), (3, 7), void_ids=(0,), void_colours=(GREY,))


@pytest.fixture
def values() -> np.ndarray:
    return np.array([[3, 7, 0], [255, 7, 3]], np.uint8)


@pytest.fixture
def train_ids() -> np.ndarray:
    return np.array([[0, 1, 255], [255, 1, 0]], np.uint8)


def test_values_and_colours_are_mapped_to_train_ids_and_back(values: np.ndarray, train_ids: np.ndarray) -> None:
    np.testing.assert_array_equal(TWO.train_ids(values), train_ids)
    np.testing.assert_array_equal(TWO.file_ids(train_ids), [[3, 7, 0], [0, 7, 3]])
    np.testing.assert_array_equal(TWO.file_ids(train_ids, void_id=9), [[3, 7, 9], [9, 7, 3]])
    colours = np.array([[RED, GREEN, GREY]], np.uint8)
    np.testing.assert_array_equal(TWO.train_ids(colours), [[0, 1, 255]])


def test_train_ids_are_not_mapped_again(train_ids: np.ndarray) -> None:
    np.testing.assert_array_equal(TWO.as_train_ids().train_ids(train_ids), train_ids)
    # What was mapped once and is taken for ids is noticed, here and in Cityscapes, where no id of a class is below 7.
    with pytest.raises(DataError, match="label values 1 are outside the palette"):
        TWO.train_ids(train_ids)
    with pytest.raises(DataError, match="label values 33 are outside"):
        Cityscapes.label_map.as_train_ids().train_ids(np.array([[33]], np.uint8))


def test_values_outside_the_palette_are_listed() -> None:
    with pytest.raises(DataError, match=r"label values 4, 5, 6, 8, 9 and 2 more .*class \(3, 7\) nor void \(0, 255\)"):
        TWO.train_ids(np.arange(3, 12, dtype=np.uint8)[None])
    with pytest.raises(DataError, match=r"label colours \(1, 2, 3\) are outside"):
        TWO.train_ids(np.array([[RED, (1, 2, 3)]], np.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ()}, "0 names, 2 colours and 2 ids"),
        ({"ids": (1, 1)}, "value 1 of label files has 2 meanings"),
        ({"void_ids": (2,)}, "value 2 of label files has 2 meanings"),
        ({"palette": (RED, RED)}, r"colour \(255, 0, 0\) of label files has 2 meanings"),
        ({"ids": (1, 255), "void_ids": (255,)}, "value 255 of label files has 2 meanings"),
        ({"ids": (1, 256)}, "from 0 to 255"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelMap(**{"names": ("a", "b"), "palette": (RED, GREEN), "ids": (1, 2)} | options)


def test_a_class_may_have_the_value_255() -> None:
    binary = LabelMap(("no", "yes"), (RED, GREEN), (0, 255), void_ids=(9,))
    values = np.array([[0, 255, 9]], np.uint8)
    np.testing.assert_array_equal(binary.train_ids(values), [[0, 1, 255]])
    np.testing.assert_array_equal(binary.file_ids(np.array([[0, 1, 255]], np.uint8), void_id=9), values)
    with pytest.raises(DataError, match=r"values 7 .* class \(0, 255\) nor void \(9\)"):
        binary.train_ids(np.array([[7]], np.uint8))


def test_voc_colours() -> None:
    # The first of PASCAL VOC's colour map, as its development kit gives them; and no two are alike.
    assert voc_colours(5) == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert voc_colours(21)[20] == (0, 64, 128)
    assert len(set(voc_colours(256))) == 256


def test_classes_of_the_shipped_data_sets() -> None:
    assert (len(Cityscapes.label_map.names), len(CamVid.label_map.names)) == (19, 11)
    known = {*Cityscapes.label_map.ids, *Cityscapes.label_map.void_ids}
    assert known == set(range(34))


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB", "RGBA"])
def test_label_files_of_every_usual_mode(tmp_path: Path, mode: str, values: np.ndarray, train_ids: np.ndarray) -> None:
    path = tmp_path / "mask.png"
    if mode in ("RGB", "RGBA"):
        colours = np.array([RED, GREEN, GREY], np.uint8)[np.array([[0, 1, 2], [2, 1, 0]])]
        Image.fromarray(colours).convert(mode).save(path)
    elif mode == "P":
        palette = Image.fromarray(values)
        palette.putpalette([255 - i // 3 for i in range(768)])
        palette.save(path)
    else:
        Image.fromarray(values.astype(np.uint16) if mode == "I;16" else values).save(path)
    with Image.open(path) as written:
        assert written.mode == mode
    np.testing.assert_array_equal(EncodedMask(path, TWO).decode((2, 3)), train_ids)


def test_binary_label_files(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "mask.png")
    found = EncodedMask(tmp_path / "mask.png", LabelMap(("no", "yes"), (RED, GREEN), (0, 1))).decode()
    np.testing.assert_array_equal(found, [[1, 0]])


def test_what_is_no_label_file_is_named(tmp_path: Path) -> None:
    mask = EncodedMask(tmp_path / "mask.png", TWO)
    for content, message in [
        (None, "it is missing"),
        (b"", "it cannot be read"),
        (np.full((2, 2), 300, np.uint16), "values from 300 to 300"),
        (np.zeros((2, 2, 2), np.uint8), "mode LA hold no labels"),
        (np.zeros((4, 2), np.uint8), "it has 2x4 pixels and its image 3x2"),
    ]:
        if isinstance(content, bytes):
            mask.path.write_bytes(content)
        elif content is not None:
            Image.fromarray(content).save(mask.path)
        with pytest.raises(DataError, match=message) as caught:
            mask.decode((2, 3) if content is not None and len(content) == 4 else None)
        assert str(mask.path) in str(caught.value)
