"""Files that are written whole or not at all: under a temporary name first, which is then renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside a file to write under, with the same ending; the file takes its place once all of it is written.

    A crash at any moment, a full disk and an exception leave the file that was there before, or none. Its folder is
    made if there is none.

    Args:
        path: the file that is to be.

    Raises:
        OSError: the file cannot be written, for want of room or a right; it names the file that was to be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.filename in (None, partial, str(partial)):
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
        raise
    _flush(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Args:
        path: the file.
        text: what it is to hold.
    """
    with whole(path) as partial:
        partial.write_text(text)


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
