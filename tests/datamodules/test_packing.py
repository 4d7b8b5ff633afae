"""Packs of training images: what is in them, going on where it stopped, and changes of the data set."""

from __future__ import annotations

import io
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DataError, ImageFolder
from datamodules.decoding import Encoded
from datamodules.packing import Packed, pack
from datamodules.transforms.resizing import resize
from exp import data as command
from exp.words import spelled_out
from tests.library.recipes import ROOT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Smooth pictures of 2 classes, 6 of each: 5 large JPEGs and a small PNG."""
    random = np.random.default_rng(0)
    for label in range(2):
        folder = tmp_path / "images" / "train" / f"kind {label}"
        folder.mkdir(parents=True)
        for number in range(6):
            small = number == 5
            coarse = random.integers(0, 256, (5, 7, 3), np.uint8)
            picture = Image.fromarray(cv2.resize(coarse, (40, 30) if small else (100 + number, 80)))
            picture.save(folder / f"{number}.{'png' if small else 'jpg'}", quality=95)
    return tmp_path / "images"


def opened(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(root, batch_size=4, holdout=2, **options)


def packed(root: Path, folder: Path, side: int = 40) -> dict[str, bytes]:
    source = opened(root).source("train")
    assert list(pack(source, folder, "train", side, 90))[-1] == len(source) == 10
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_images_are_those_of_the_data_set_at_the_size_asked_for(root: Path, tmp_path: Path) -> None:
    packed(root, tmp_path / "pack")
    source = opened(root).source("train")
    smaller = Packed(source, tmp_path / "pack", "train")
    for index in range(len(source)):
        whole, sample = source.load(index)["image"].decode(), smaller.load(index)
        assert sample["label"] == source.load(index)["label"]
        assert smaller.name(index) == source.name(index)
        pixels = sample["image"].decode()
        height, width = whole.shape[:2]
        assert pixels.shape[:2] == ((30, 40) if height == 30 else (40, round(width / 2)))
        assert np.abs(pixels - resize(whole, *pixels.shape[:2]).astype(float)).mean() < 4


def test_jpegs_that_are_small_enough_stay_byte_by_byte(root: Path, tmp_path: Path) -> None:
    packed(root, tmp_path / "pack", side=80)
    source = opened(root).source("train")
    kept = [index for index in range(len(source)) if source.name(index).endswith("jpg")]
    smaller = Packed(source, tmp_path / "pack", "train")
    assert len(kept) >= 6
    assert all(smaller.load(index)["image"].data == Path(source.name(index)).read_bytes() for index in kept)


def test_a_pack_goes_on_where_it_was_stopped(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.packing.SAFE", 2)
    whole = packed(root, tmp_path / "whole")
    source = opened(root).source("train")
    for stop in (1, 5, 6):
        stopped = pack(source, tmp_path / "pack", "train", 40, 90)
        assert len(list(islice(stopped, stop))) == stop
        stopped.close()
        with pytest.raises(DataError, match=r"no finished pack of the train images .* Make it with `exp data pack`"):
            Packed(source, tmp_path / "pack", "train")
        # What a kill leaves after the last row: bytes that no row speaks of, and half a row.
        for name in ("train.data.npy", "train.rows.npy"):
            with (tmp_path / "pack" / name).open("ab") as file:
                file.write(b"torn")
    read: list[int] = []
    original = Encoded.open
    monkeypatch.setattr(Encoded, "open", lambda image: read.append(1) or original(image))
    assert packed(root, tmp_path / "pack") == whole
    assert len(read) < 10
    read.clear()
    assert packed(root, tmp_path / "pack") == whole
    assert not read


def test_what_has_changed_is_said_and_packed_anew(root: Path, tmp_path: Path) -> None:
    packed(root, tmp_path / "pack")
    source = opened(root).source("train")
    file = Path(source.name(3))
    # Another time alone is no change; other bytes are.
    os.utime(file, (1, 1))
    Packed(source, tmp_path / "pack", "train").load(3)
    file.write_bytes(Path(source.name(4)).read_bytes())
    with pytest.raises(DataError, match=rf"{re.escape(str(file))}.*changed since it was packed in .*`exp data pack`"):
        list(opened(root, packed=tmp_path / "pack").train_dataloader())
    assert list(pack(source, tmp_path / "pack", "train", 40, 90)) == [3, *range(4, 11)]
    again = Packed(source, tmp_path / "pack", "train")
    assert again.load(3)["image"].data == again.load(4)["image"].data
    Path(source.name(0)).unlink()
    with pytest.raises(DataError, match="is of 10 images, and the train split has 9"):
        Packed(opened(root).source("train"), tmp_path / "pack", "train")


def test_other_settings_are_another_pack(root: Path, tmp_path: Path) -> None:
    sides = [packed(root, tmp_path / "pack", side)["train.data.npy"] for side in (40, 20, 40)]
    assert sides[0] == sides[2] != sides[1]


def test_only_training_reads_the_pack(root: Path, tmp_path: Path) -> None:
    packed(root, tmp_path / "pack", side=8)
    plain, smaller = opened(root), opened(root, packed=str(tmp_path / "pack"))
    one, other = next(iter(plain.train_dataloader())), next(iter(smaller.train_dataloader()))
    assert torch.equal(one["index"], other["index"])
    assert torch.equal(one["label"], other["label"])
    assert not torch.equal(one["image"], other["image"])
    one, other = next(iter(plain.val_dataloader())), next(iter(smaller.val_dataloader()))  # type: ignore[arg-type]
    assert torch.equal(one["image"], other["image"])


class _Boxes:
    """A split whose labels have places in the image."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return 1

    def load(self, index: int) -> dict[str, Any]:
        return self.fields

    def name(self, index: int) -> str:
        return "street.png"


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (50, 50)).save(png, "png")
    encoded = Encoded(png.getvalue())
    for fields, reason in (
        ({"image": encoded, "target": {}}, "it has target, made for its own size"),
        ({"image": np.zeros((9, 9, 3), np.uint8)}, "not encoded: there is nothing to be gained"),
        ({"image": Encoded(b"no image")}, "not an image of a known format"),
    ):
        with pytest.raises(DataError, match=f"street.png cannot be packed: .*{reason}"):
            list(pack(_Boxes(**fields), tmp_path / "pack", "train", 40, 90))


def test_the_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs/own_images.yaml")
    words = spelled_out("data", ["pack", config, f"--data.root={root}", "--data.size=28", "-o", "pack"])
    assert command.main(words) == 0
    assert "pack: train, shorter side of at most 32 pixels" in capsys.readouterr().out
    assert (tmp_path / "pack/train.json").exists()
    with pytest.raises(SystemExit):
        command.main([*words, "--quality=0"])
    assert "--quality=0 from 1 to 100" in capsys.readouterr().err
