"""Files that cannot be written: one line that names the file and the remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

ROOM = "free space there, and run the command again"
TAKEN = "move away what has that name, or choose another folder"
RIGHT = "allow writing there, or choose another folder"
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EISDIR: TAKEN,
    errno.ENOTDIR: TAKEN,
    errno.EROFS: RIGHT,
    errno.EACCES: RIGHT,
    errno.EPERM: RIGHT,
    errno.EIO: "the disk, or the way to it, is at fault",
    errno.ESTALE: "the disk, or the way to it, is at fault",
}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def unwritable(error: BaseException | None) -> str | None:
    """What a person is told of an error that is the disk's, or that came of one; None for any other.

    Args:
        error: what was raised; its causes are looked at, too.
    """
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in REMEDIES:
            place = f"{os.fsdecode(cause.filename)}: " if isinstance(cause.filename, (str, bytes, os.PathLike)) else ""
            return f"{place}{(cause.strerror or '').lower()}; {REMEDIES[cause.errno]}"
    return None
