"""Arrays unpacked once to disk and memory-mapped from there, so that processes share them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from datamodules.errors import DataError


def cache_root() -> Path:
    """Where unpacked data go: ``EXP_CACHE``, else ``exp`` in the user's cache folder."""
    given = os.environ.get("EXP_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exp"


def unpack_once(files: Sequence[Path], write: Callable[[Path], None], layout: str = "") -> Path:
    """Folder with what ``write`` made of some files; made anew when a file changes.

    Any number of processes may ask at once: each works in a folder of its own, and the first to finish renames it.

    Args:
        files: Files that the content depends on (by path, size and modification time).
        write: Fills the folder it is given.
        layout: Version of what ``write`` makes; another one is made anew, too.

    Returns:
        The finished folder.

    Raises:
        DataError: If the cache cannot be written.
    """
    key = layout
    for file in files:
        status = file.stat()
        key += f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}\n"
    return write_once(f"{files[0].parent.name}-{files[0].stem}", key, write, source=str(files[0]))


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
        DataError: If the cache cannot be written.
    """
    folder = cache_root() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".draft-"))
    except OSError as problem:
        raise DataError(
            f"{source} is unpacked to {folder.parent}, which failed: {problem}. Set EXP_CACHE."
        ) from problem
    try:
        write(draft)
        for made in draft.rglob("*"):
            if made.is_file():
                with made.open("rb") as stream:
                    os.fsync(stream.fileno())
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as problem:
        raise DataError(
            f"Unpacking {source} to {folder} failed: {problem}. Set EXP_CACHE to a disk with space."
        ) from problem
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


class MappedArray:
    """A ``.npy`` file, memory-mapped in each process that touches it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._mapped())

    def __getitem__(self, where: int | slice) -> np.ndarray:
        # A copy: what comes next may write to it, and must not write to the file.
        return np.array(self._mapped()[where])

    def __getstate__(self) -> dict[str, object]:
        # A memory map would be pickled with all its content.
        return {"path": self.path, "_array": None}

    def _mapped(self) -> np.ndarray:
        if self._array is None:
            self._array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return self._array
