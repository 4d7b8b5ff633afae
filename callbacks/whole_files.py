"""Files that are written whole or not at all: under a temporary name first, which is then renamed."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from drawing.figures import save


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


def note(path: Path, text: str) -> bool:
    """Adds to a log, if that can be; says whether it could. What it could not be leaves no empty file behind.

    Args:
        path: the log, in a folder that exists.
        text: what is added.
    """
    try:
        with path.open("a") as file:
            file.write(text)
        return True
    except OSError:
        with suppress(OSError):
            if not path.stat().st_size:
                path.unlink()
        return False


def write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes a CSV file, whole or not at all.

    Args:
        path: the file.
        rows: what it is to hold, the header first.
    """
    with whole(path) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_picture(path: Path, figure: Figure) -> Path:
    """Writes a figure as PNG, whole or not at all, and returns its path."""
    with whole(path) as partial:
        save(figure, partial)
    return path


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
