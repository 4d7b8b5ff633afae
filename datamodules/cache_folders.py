"""Folders of the cache: complete or not there at all, with checksums by which damage is found."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MANIFEST = "manifest.json"
FORMAT = 1
# A checksum is of so much of a file; of folders with more than VERIFIED, only some are compared.
BLOCK = 1 << 24
VERIFIED = 1 << 30
# Folders in which something is written, of this version (locked by who writes) and of those before it (not locked).
DRAFT, EARLIER_DRAFT = ".writing-", ".draft-"
DAY = 86_400


def damage(folder: Path) -> str | None:
    """What is wrong with a finished folder.

    Every file is compared with its checksum, at several gigabytes a second; of more than a gigabyte, only the first and
    the last part of each file and some between.

    Args:
        folder: The folder.

    Returns:
        The first reason found; empty if nothing is there, None if nothing is wrong.
    """
    if not os.path.lexists(folder):
        return ""
    if not folder.is_dir():
        return "it is no folder"
    found = f"{MANIFEST} is damaged"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"{MANIFEST} is of another version"
        sizes = [size for size, _ in manifest["files"].values()]
        step = max(1, -(-sum(sizes) // VERIFIED))
        for name, (size, checksums) in manifest["files"].items():
            found = f"{name} is damaged"
            status = os.lstat(folder / name)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                return found
            blocks = sorted({*range(0, len(checksums), step), len(checksums) - 1} - {-1})
            if list(_checksums(folder / name, blocks)) != [checksums[block] for block in blocks]:
                return found
    except FileNotFoundError as problem:
        return f"{Path(problem.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return found
    return None


def place(folder: Path, write: Callable[[Path], None]) -> None:
    """Puts what ``write`` makes in the place of a folder that is not there or damaged.

    Each process works in a folder of its own, which moves to its place at once. Who comes second leaves what is there.

    Args:
        folder: The place.
        write: Fills the folder it is given.

    Raises:
        OSError: If it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    with _draft(folder.parent) as draft:
        made = draft / "new"
        made.mkdir()
        write(made)
        finish(made)
        if damage(folder) is None:
            return
        if os.path.lexists(folder):
            with suppress(OSError):
                os.chmod(folder, stat.S_IRWXU)  # to move a folder, its owner must be allowed to write to it
            os.rename(folder, draft / "old")
        try:
            os.rename(made, folder)
        except OSError:
            if damage(folder) is not None:
                raise


def finish(folder: Path) -> None:
    """Writes the checksums of a folder's files, when all of them are on the disk.

    Raises:
        OSError: If that fails.
    """
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            size = file.stat().st_size
            files[str(file.relative_to(folder))] = (size, list(_checksums(file, range(-(-size // BLOCK)))))
    with (folder / MANIFEST).open("w") as stream:
        json.dump({"format": FORMAT, "files": files}, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _checksums(file: Path, blocks: range | list[int]) -> Iterator[int]:
    """Checksum of some blocks of a file."""
    with file.open("rb", buffering=0) as stream:
        for block in blocks:
            stream.seek(block * BLOCK)
            yield zlib.crc32(stream.read(BLOCK))


@contextmanager
def _draft(root: Path) -> Iterator[Path]:
    """A folder of this process's own, locked as long as it is written."""
    with _locked(root):
        draft = Path(tempfile.mkdtemp(dir=root, prefix=DRAFT))
        lock = os.open(draft, os.O_RDONLY)
        _lock(lock, wait=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def _sweep(root: Path) -> None:
    """Removes what processes left that were killed as they wrote."""
    with _locked(root):
        for left in root.glob(f"{DRAFT}*"):
            try:
                lock = os.open(left, os.O_RDONLY)
            except OSError:
                continue
            if _lock(lock, wait=False) or _is_old(left):
                shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    for left in root.glob(f"{EARLIER_DRAFT}*"):
        if _is_old(left):
            shutil.rmtree(left, ignore_errors=True)


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - max(each.stat().st_mtime for each in (folder, *folder.rglob("*"))) > DAY
    except OSError:
        return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process at a time, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    """Locks an open folder until it is closed; whether that worked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
