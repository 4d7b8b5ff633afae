"""A cache that was damaged, emptied, left half-written or cannot be written is nobody's mistake, and costs no run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from datamodules import Coco, DataError, cache_folders
from datamodules.cache import cache_root, unpack_once, write_once
from datamodules.cache_folders import damage
from tests.library.coco_files import CocoFiles

VALUES = {"large": np.arange(50_000), "small": np.ones((3, 4), np.float32)}


def fill(folder: Path) -> None:
    for name, values in VALUES.items():
        np.save(folder / f"{name}.npy", values)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.json"
    file.write_text("{}")
    return file


def same(arrays: dict[str, object]) -> bool:
    return all(np.array_equal(arrays[name][:], values) for name, values in VALUES.items())  # type: ignore[index]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def swap(folder: Path) -> None:
    one, other = folder / "large.npy", folder / "small.npy"
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)


def replace_by_text(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def replace_by_folder(folder: Path) -> None:
    (folder / "small.npy").unlink()
    (folder / "small.npy").mkdir()


def replace_by_pipe(folder: Path) -> None:
    (folder / "small.npy").unlink()
    os.mkfifo(folder / "small.npy")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda folder: os.truncate(folder / "large.npy", 1000),
    "empty": lambda folder: (folder / "large.npy").write_bytes(b""),
    "bit in the header": lambda folder: flip(folder / "small.npy", 20),
    "bit in the data": lambda folder: flip(folder / "large.npy", 70_000),
    "other shape": lambda folder: np.save(folder / "large.npy", np.arange(50_000).reshape(2, -1)),
    "other type": lambda folder: np.save(folder / "small.npy", np.ones((3, 4), np.int32)),
    "folder for a file": replace_by_folder,
    "pipe for a file": replace_by_pipe,
    "text for the folder": replace_by_text,
    "one file gone": lambda folder: (folder / "small.npy").unlink(),
    "swapped": swap,
    "text in a file": lambda folder: (folder / "small.npy").write_text("hello"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "cut manifest": lambda folder: os.truncate(folder / "manifest.json", 20),
    "strange manifest": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "files": {"a": 3}}'),
    "manifest of another version": lambda folder: (folder / "manifest.json").write_text('{"format": 0}'),
    "unreadable": lambda folder: folder.chmod(0),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_what_was_there_is_made_again(source: Path, cache: Path, kind: str) -> None:
    unpack_once([source], fill)
    (folder,) = cache.glob("*-source-*")
    DAMAGE[kind](folder)
    unharmed = kind == "unreadable" and os.geteuid() == 0
    if unharmed:
        assert same(unpack_once([source], fill))
        return
    with pytest.warns(UserWarning, match=rf"^{folder} is damaged \(.*\) and is made again\.$"):
        arrays = unpack_once([source], fill)
    assert same(arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(unpack_once([source], lambda _: pytest.fail("made again")))
    assert [each.name for each in cache.iterdir()] == [folder.name]


def test_a_folder_of_files_is_verified_too(cache: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "images").mkdir()
        (folder / "images/a.txt").write_text("a")

    folder = write_once("scenes", "1", write, "scenes")
    (folder / "images/a.txt").write_text("b")
    with pytest.warns(UserWarning, match=r"is damaged \(images/a.txt is damaged\)"):
        assert write_once("scenes", "1", write, "scenes") == folder
    assert (folder / "images/a.txt").read_text() == "a"


def test_of_a_large_cache_parts_are_compared(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folders, "BLOCK", 1000)
    monkeypatch.setattr(cache_folders, "VERIFIED", 100_000)
    unpack_once([source], fill)
    (folder,) = cache.glob("*-source-*")
    read: list[int] = []
    checksum = cache_folders.zlib.crc32

    def counted(content: bytes) -> int:
        read.append(len(content))
        return checksum(content)

    monkeypatch.setattr(cache_folders.zlib, "crc32", counted)
    assert damage(folder) is None
    assert 70_000 < sum(read) <= 100_000
    # Head and tail of each file are always among them.
    for place in (0, -1):
        flip(folder / "large.npy", place)
        assert damage(folder) == "large.npy is damaged"
        flip(folder / "large.npy", place)


def test_a_file_of_the_same_size_and_time_is_another_file(source: Path) -> None:
    unpack_once([source], fill)
    before = source.stat()
    source.write_text("[]")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    made = []
    unpack_once([source], lambda folder: made.append(fill(folder)))
    assert len(made) == 1


def test_what_is_open_outlives_a_cleaner(source: Path, cache: Path) -> None:
    arrays = unpack_once([source], fill)
    shutil.rmtree(cache)
    assert same(arrays)
    assert same(unpack_once([source], fill))


def test_workers_outlive_a_cleaner(coco: CocoFiles, cache: Path) -> None:
    data = coco.data(num_workers=1)
    loader = data.train_dataloader()
    shutil.rmtree(cache)
    assert sum(len(batch["image"]) for batch in loader) == 2


def test_a_cleaner_between_writing_and_opening_is_waited_for(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    placed = cache_folders.place

    def cleaned(folder: Path, write: Callable[[Path], None]) -> None:
        placed(folder, write)
        tries.append(folder)
        if len(tries) < 2:
            shutil.rmtree(folder)

    monkeypatch.setattr("datamodules.cache.place", cleaned)
    assert same(unpack_once([source], fill))
    assert len(tries) == 2


@pytest.mark.parametrize("trouble", ["no folder", "full"])
def test_without_a_cache_data_are_unpacked_for_this_run(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    place = cache
    if trouble == "no folder":
        (tmp_path / "file").write_text("")
        place = tmp_path / "file" / "cache"
        monkeypatch.setenv("EXP_CACHE", str(place))

    def write(folder: Path) -> None:
        np.save(folder / "large.npy", VALUES["large"])
        if trouble == "full" and folder.is_relative_to(cache):
            raise OSError(errno.ENOSPC, "No space left on device")
        fill(folder)

    reason = "Not a directory" if trouble == "no folder" else "No space left on device"
    with pytest.warns(UserWarning, match=rf"{place} cannot be used \({reason}\).* for this run only\. Set EXP_CACHE"):
        arrays = unpack_once([source], write)
    assert same(arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(unpack_once([source], write))
    if trouble == "full":
        assert not list(cache.iterdir())


def test_no_place_at_all_is_one_error(source: Path) -> None:
    def write(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(
        DataError, match=r"source.json is unpacked to .* which failed: Input/output error. Set EXP_CACHE"
    ):
        unpack_once([source], write)


def test_a_mistake_in_the_data_is_no_fault_of_the_disk(source: Path, cache: Path) -> None:
    def write(folder: Path) -> None:
        raise DataError("the file is damaged")

    with pytest.raises(DataError, match=r"^the file is damaged$"):
        unpack_once([source], write)
    assert not list(cache.iterdir())
    source.unlink()
    with pytest.raises(DataError, match=r"source\.json cannot be read: No such file"):
        unpack_once([source], write)


def write_for_ever(source: Path, began: Connection) -> None:
    def write(folder: Path) -> None:
        (folder / "half.npy").write_bytes(b"x")
        began.send(None)
        time.sleep(600)

    unpack_once([source], write)


def test_what_a_killed_process_left_is_swept_and_nothing_else(source: Path, cache: Path) -> None:
    fork = multiprocessing.get_context("fork")
    heard, began = fork.Pipe(duplex=False)
    killed, alive = (fork.Process(target=write_for_ever, args=(source, began)) for _ in range(2))
    for process in (killed, alive):
        process.start()
        heard.recv()
    killed.kill()
    killed.join()
    old, young = cache / ".draft-old", cache / ".draft-young"
    for left in (old, young):
        left.mkdir()
    os.utime(old, (time.time() - 2 * cache_folders.DAY,) * 2)
    assert len(list(cache.glob(".writing-*"))) == 2
    assert same(unpack_once([source], fill))
    try:
        # One is still written, and one may be, by an earlier version.
        assert len(list(cache.glob(".writing-*"))) == 1
        assert [left.name for left in cache.glob(".draft-*")] == [young.name]
    finally:
        alive.kill()
        alive.join()


def test_a_home_that_is_written_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EXP_CACHE", "~/mine")
    assert cache_root() == tmp_path / "mine"


def test_objects_are_never_loaded(source: Path) -> None:
    def write(folder: Path) -> None:
        np.save(folder / "a.npy", np.array([{}], object), allow_pickle=True)

    with pytest.raises(ValueError, match="holds objects, which are never loaded"):
        unpack_once([source], write)


def test_arrays_that_were_written_short_are_the_sources_fault(source: Path) -> None:
    def write(folder: Path) -> None:
        fill(folder)
        os.truncate(folder / "large.npy", 1000)

    with pytest.raises(ValueError, match=r"large\.npy is shorter than its header says"):
        unpack_once([source], write)


def test_pickled_arrays_are_paths(source: Path) -> None:
    array = unpack_once([source], fill)["large"]
    sent = pickle.dumps(array)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent)[:], VALUES["large"])


def test_damaged_annotations_are_compiled_again(coco: CocoFiles, cache: Path) -> None:
    data = coco.data()
    truth = data.ground_truth("train")
    for file in cache.glob("*/boxes.npy"):
        flip(file, -3)
    with pytest.warns(UserWarning, match="is made again"):
        assert Coco(coco.root).ground_truth("train") == truth
