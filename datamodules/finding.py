"""Finding, opening and naming the files of a data set: one rule for images, label files and what `predict` is given.

Folders are searched with their subfolders and through links; a link that leads back to a folder above it is not
followed. Hidden files and folders (``._x.jpg``, ``.DS_Store``) and those of operating systems (``__MACOSX``) are no
one's images. The order is that of the names' bytes, whatever the language of the machine.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from pathlib import Path, PurePosixPath

from datamodules.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
# The largest image that is decoded has fewer bytes, even if it is stored as it is.
MAX_BYTES = 1 << 30
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# They turn the text after them around.
DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
Identity = tuple[int, int]


def images_in(folder: Path) -> list[bytes]:
    """Image files of a folder and its subfolders, by their paths in it, sorted.

    No file is opened: what only looks like an image is found out when it is read.

    Raises:
        DataError: If a folder cannot be read, or a link that may be to one leads nowhere.
    """
    found: list[bytes] = []
    waiting = [(folder, b"", _above(folder))]
    while waiting:
        place, prefix, above = waiting.pop()
        for entry in _entries(place):
            name = prefix + os.fsencode(entry.name)
            extension = os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                inside = _identity(place / entry.name)
                if inside not in above:
                    waiting.append((place / entry.name, name + b"/", above | {inside}))
            elif extension in EXTENSIONS:
                found.append(name)
            elif not extension:
                _refuse_dangling(place / entry.name, entry)
    return sorted(found)


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; of links, those that do not lead back to it.

    Raises:
        DataError: If it cannot be read, or a link that may be to a folder leads nowhere.
    """
    above = _above(folder)
    found = []
    for entry in _entries(folder):
        if _is_folder(entry):
            if not entry.is_symlink() or _identity(folder / entry.name) not in above:
                found.append(entry.name)
        else:
            _refuse_dangling(folder / entry.name, entry)
    return sorted(found, key=os.fsencode)


class Listings:
    """Which of many named files there are, by one listing of each folder instead of a look at each file.

    Args:
        root: Folder that names are in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, set[str]] = {}

    def has(self, name: str) -> bool:
        """Whether there is a file of a name, which may be in subfolders.

        Raises:
            DataError: If the folder cannot be read.
        """
        within, _, base = name.rpartition("/")
        if within not in self._listed:
            self._listed[within] = _names_in(self.root / within)
        return base in self._listed[within]


def read_file(path: Path) -> bytes:
    """The contents of a file, which is never waited for: pipes, devices and sockets are refused.

    Raises:
        DataError: If it cannot be read, is no regular file, or is larger than ``MAX_BYTES``.
    """
    try:
        # A pipe that is opened to wait would wait for ever.
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        if getattr(problem, "errno", None) == errno.ENXIO:
            reason = f"it is {KINDS[stat.S_IFSOCK]}, and no regular file"
        raise DataError(f"cannot be read: {reason}") from problem
    try:
        status = os.fstat(opened)
        if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
            raise DataError(f"cannot be read: it is {kind}, and no regular file")
        if status.st_size > MAX_BYTES:
            raise DataError(f"cannot be read: it has {status.st_size:,} bytes, more than any image that is decoded")
        with open(opened, "rb", closefd=False) as stream:
            return stream.read(status.st_size)
    except OSError as problem:
        raise DataError(f"cannot be read: {problem.strerror or problem}") from problem
    finally:
        os.close(opened)


def shown(name: str | bytes | Path) -> str:
    r"""A name as it can be printed and written: line ends, control characters and bytes that are not UTF-8 escaped."""
    text = os.fsdecode(name)
    return text if text.isprintable() else "".join(map(_visible, text))


def leads_outside(name: str) -> bool:
    """Whether a file name of an annotation, taken in a folder, leads out of it: it is absolute or climbs by ``..``."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as problem:
        raise DataError(f"{folder} cannot be read: {problem.strerror}. Check that it is readable.") from problem


def _visible(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":
        return f"\\x{ord(sign) - 0xDC00:02x}"
    if sign in DIRECTIONS or unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp"):
        return sign.encode("unicode_escape").decode()
    return sign


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [each for each in entries if not each.name.startswith(".") and each.name not in SYSTEM_FOLDERS]
    except OSError as problem:
        raise _unreadable(folder, problem) from problem


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, or into what may not be read; as a file, it is named when it is opened.
        return False


def _above(folder: Path) -> frozenset[Identity]:
    """A folder and those that it lies in, wherever links may have led to it."""
    try:
        return frozenset(_identity(each) for each in (folder, *folder.resolve().parents))
    except RuntimeError as problem:
        raise DataError(f"{folder} cannot be read: {problem}.") from problem


def _identity(folder: Path) -> Identity:
    try:
        status = folder.stat()
    except OSError as problem:
        raise _unreadable(folder, problem) from problem
    return status.st_dev, status.st_ino


def _refuse_dangling(path: Path, entry: os.DirEntry[str]) -> None:
    if entry.is_symlink() and not os.path.exists(path):
        raise DataError(f"{path} is a link that leads nowhere (to {os.readlink(path)}). Mend or remove it.")


def _unreadable(folder: Path, problem: OSError) -> DataError:
    return DataError(f"{folder} cannot be read: {problem.strerror}. Check that it exists and is readable.")
