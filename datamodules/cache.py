"""Data unpacked once to disk and verified whenever they are opened; arrays are mapped, so that processes share them."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from datamodules.cache_folders import damage, finish, place
from datamodules.errors import DataError
from datamodules.mapped_array import MappedArray

# What is unpacked is found by the head and the tail of a file, its size and its time: so much of each is read.
ENDS = 1 << 16
# A cleaner may be quicker than we are, but not again and again.
ATTEMPTS = 3
Content = TypeVar("Content")


def cache_root() -> Path:
    """Where unpacked data go: ``EXP_CACHE``, else ``exp`` in the user's cache folder."""
    given = os.environ.get("EXP_CACHE")
    if given:
        return Path(os.path.expanduser(given))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "exp"


def unpack_once(files: Sequence[Path], write: Callable[[Path], None], layout: str = "") -> dict[str, MappedArray]:
    """What ``write`` made of some files, mapped; made anew when a file changes or what was made is damaged.

    Any number of processes may ask at once. What is open stays usable when the cache is emptied.

    Args:
        files: Files that the content depends on (by path, size, modification time, head and tail).
        write: Fills the folder it is given with ``.npy`` files.
        layout: Version of what ``write`` makes; another one is made anew, too.

    Returns:
        The arrays by the names of their files.

    Raises:
        DataError: If a file cannot be read, or there is no place to unpack it to.
    """

    def mapped(folder: Path) -> dict[str, MappedArray]:
        return {file.stem: MappedArray(file) for file in folder.glob("*.npy")}

    key = layout + "".join(map(_identity, files))
    return _obtain(f"{files[0].parent.name}-{files[0].stem}", key, write, str(files[0]), mapped)


def write_once(name: str, key: str, write: Callable[[Path], None], source: str) -> Path:
    """Folder that ``write`` has filled, once for each key; safe among processes as ``unpack_once``.

    Args:
        name: What a person would recognise the folder by.
        key: Everything that the content depends on.
        write: Fills the folder it is given.
        source: What is written, for messages.

    Returns:
        The finished folder.

    Raises:
        DataError: If there is no place to write it to.
    """
    return _obtain(name, key, write, source, lambda folder: folder)


def _obtain(name: str, key: str, write: Callable[[Path], None], source: str, use: Callable[[Path], Content]) -> Content:
    """What ``use`` makes of the finished folder."""
    root = cache_root()
    named = f"{name[:100]}-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:16]}"
    try:
        for _ in range(ATTEMPTS):
            if (reason := damage(root / named)) is None:
                try:
                    return use(root / named)
                except FileNotFoundError:
                    continue
            if reason:
                warnings.warn(f"{root / named} is damaged ({reason}) and is made again.", stacklevel=3)
            place(root / named, write)
        trouble = "what is written there disappears"
    except OSError as problem:
        trouble = problem.strerror or f"not all could be written: {problem}"
    # A disk that is full or read-only is no reason not to train.
    for parent in (None, "/dev/shm"):
        try:
            folder = _spare(parent) / named
            if damage(folder) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                write(folder)
                finish(folder)
        except OSError:
            continue
        _say_once(
            f"{root} cannot be used ({trouble}): what belongs there is unpacked to {folder.parent}, for this run only"
        )
        return use(folder)
    raise DataError(f"{source} is unpacked to {root}, which failed: {trouble}. Set EXP_CACHE to a disk with space.")


def _identity(file: Path) -> str:
    """Path, size, time, and a digest of head and tail of a file."""
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            ends = hashlib.sha256(stream.read(ENDS))
            stream.seek(max(ENDS, status.st_size - ENDS))
            ends.update(stream.read(ENDS))
    except OSError as problem:
        raise DataError(f"{file} cannot be read: {problem.strerror or problem}.") from problem
    return f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}|{ends.hexdigest()}\n"


@cache
def _spare(parent: str | None) -> Path:
    """A folder that ends with this process."""
    folder, owner = Path(tempfile.mkdtemp(prefix="exp-", dir=parent)), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@cache
def _say_once(sentence: str) -> None:
    warnings.warn(f"{sentence}. Set EXP_CACHE to a disk with space.", stacklevel=4)
