"""Which files are found, in which order, how they are opened and what they are called."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import DataError, ImageFolder, SegmentationFolder
from datamodules.decoding import decode
from datamodules.files import ImageFiles
from datamodules.finding import MAX_BYTES, folders_in, images_in, leads_outside, read_file, shown
from datamodules.folders import ClassFolders
from datamodules.segmentation_folder import MaskClass

PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


def image(path: Path, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(PIXELS, (size, size, 3))).save(path, "PNG")
    return path


def found(folder: Path) -> list[str]:
    return [os.fsdecode(name) for name in images_in(folder)]


def test_hidden_and_system_files_are_no_images(tmp_path: Path) -> None:
    for name in ("b/._x.jpg", ".DS_Store", "Thumbs.db", "__MACOSX/y.jpg", ".git/z.png", "@eaDir/x.jpg", "list.txt"):
        image(tmp_path / name)
    for name in ("b/X.JPG", "a.PnG", "b-c/x.tiff", "b/x.jpg"):
        image(tmp_path / name)
    # Of bytes, as "-" comes before "/".
    assert found(tmp_path) == ["a.PnG", "b-c/x.tiff", "b/X.JPG", "b/x.jpg"]
    assert folders_in(tmp_path) == ["b", "b-c"]


def test_links_are_followed_and_loops_are_cut(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere/deep/x.png")
    image(tmp_path / "data/train/cat/a.png")
    cat = tmp_path / "data/train/cat"
    (cat / "link").symlink_to(tmp_path / "elsewhere")
    (cat / "file.png").symlink_to(tmp_path / "elsewhere/deep/x.png")
    # To itself, to a folder above, out to one that holds it all, and in a circle of two.
    (cat / "self").symlink_to(cat)
    (cat / "up").symlink_to("../..")
    (cat / "out").symlink_to(tmp_path)
    (tmp_path / "elsewhere/back").symlink_to(cat)
    (tmp_path / "data/train/all").symlink_to(tmp_path / "data/train")
    expected = ["a.png", "file.png", "link/deep/x.png"]
    assert found(cat) == expected
    assert [path.relative_to(cat).as_posix() for path in ImageFiles([cat]).paths] == expected
    classes = ClassFolders(tmp_path / "data/train")
    assert classes.class_names == ["cat"]
    assert len(classes) == 3


def test_a_folder_that_is_gone_is_not_left_out_in_silence(tmp_path: Path) -> None:
    image(tmp_path / "train/cat/a.png")
    (tmp_path / "train/dog").symlink_to(tmp_path / "unplugged")
    for open_it in (lambda: ClassFolders(tmp_path / "train"), lambda: ImageFiles([tmp_path])):
        with pytest.raises(DataError, match=r"train/dog is a link that leads nowhere \(to .*unplugged\)"):
            open_it()


def test_images_masks_and_predictions_are_found_alike(tmp_path: Path) -> None:
    for folder, value in (("images", None), ("masks", 1)):
        for name in ("a.png", "sub/B.PNG", "sub/._B.PNG", "__MACOSX/a.png"):
            path = image(tmp_path / "real" / folder / name)
            if value is not None:
                Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
        (tmp_path / "data" / folder).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / folder).symlink_to(tmp_path / "real" / folder)
        (tmp_path / "real" / folder / "loop").symlink_to(".")
    data = SegmentationFolder(tmp_path / "data", [MaskClass("no"), MaskClass("yes")], holdout=1, crop=8)
    data.setup("fit")
    pairs = [*data.source("train").names, *data.source("val").names]
    assert sorted(pairs) == [("a.png", "a.png"), ("sub/B.PNG", "sub/B.PNG")]
    assert found(tmp_path / "data/images") == ["a.png", "sub/B.PNG"]


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "loop", "folder", "large", "null"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jpg"
    monkeypatch.chdir(tmp_path)
    reason = {
        "pipe": "it is a named pipe",
        "device": "it is a device",
        "socket": "it is a socket",
        "loop": "symbolic links",
        "folder": "it is a directory",
        "large": f"it has {MAX_BYTES + 1:,} bytes",
        "null": "null byte",
    }[kind]
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("x.jpg")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as stream:
            stream.truncate(MAX_BYTES + 1)
    else:
        path = tmp_path / "x\0.jpg"
    for read in (read_file, decode):
        with pytest.raises(DataError, match=f"^cannot be read: .*{reason}"):
            read(path)


def test_a_pipe_among_images_is_named_or_skipped(tmp_path: Path) -> None:
    for number in range(4):
        image(tmp_path / f"train/cat/{number}.png")
        image(tmp_path / f"train/dog/{number}.png")
    os.mkfifo(tmp_path / "train/cat/x.jpg")
    options = {"batch_size": 9, "holdout": 0, "train_transforms": [], "eval_transforms": []}
    with pytest.raises(DataError, match=r"cat/x\.jpg \(index 4, label 0\): cannot be read: it is a named") as caught:
        list(ImageFolder(tmp_path, **options).train_dataloader())
    assert "on_bad_sample: skip" in str(caught.value)
    data = ImageFolder(tmp_path, on_bad_sample="skip", **options)
    with pytest.warns(UserWarning, match=r"Skipped .*x\.jpg"):
        assert len(next(iter(data.train_dataloader()))["index"]) == 9
    data.predict_paths = [tmp_path / "train/cat"]
    data.setup("predict")
    assert [len(batch["index"]) for batch in data.predict_dataloader()] == [4]


def test_names_are_shown_so_that_they_can_be_printed_and_written(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    odd = {
        b"caf\xe9.png": r"caf\xe9.png",
        b"two\nlines.png": r"two\nlines.png",
        b"red\x1b[31m.png": r"red\x1b[31m.png",
        "right\u202eto left.png".encode(): r"right\u202eto left.png",
        "Ünïcode 中 x.png".encode(): "Ünïcode 中 x.png",
    }
    (folder / "cat").mkdir(parents=True)
    for name in odd:
        image(folder / "cat" / os.fsdecode(name))
    image(Path(os.fsdecode(os.fsencode(folder) + b"/d\xf6g/x.png")))
    data = ImageFolder(tmp_path, holdout=0, batch_size=6, train_transforms=[], eval_transforms=[])
    data.setup("fit")
    assert data.class_names == ["cat", r"d\xf6g"]
    names = [data.sample_name("train", index) for index in range(6)]
    assert {Path(name).name for name in names[:5]} == set(odd.values())
    "\n".join(names).encode("utf-8")
    assert len(next(iter(data.train_dataloader()))["index"]) == 6
    for raw, escaped in odd.items():
        assert shown(raw) == escaped
    # A bad one is reported by the same name.
    (folder / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"caf\\xe9\.png \(index \d, label 0\): not an image"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    ("name", "outside"),
    [("a.jpg", False), ("sub/a..b.jpg", False), ("/etc/a.jpg", True), ("../a.jpg", True), ("sub/../../a.jpg", True)],
)
def test_names_of_annotations_that_lead_out_of_their_folder(name: str, outside: bool) -> None:
    assert leads_outside(name) == outside
