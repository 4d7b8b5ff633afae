"""Files that cannot be written: one line that names the file and the remedy."""

from __future__ import annotations

import errno
import os

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


def unwritable(error: BaseException | None) -> str | None:
    """What a person is told of an error that is the disk's, or that came of one; None for any other.

    Args:
        error: what was raised; its causes are looked at, too.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
            return f"{place}{(error.strerror or '').lower()}; {REMEDIES[error.errno]}"
        error = error.__cause__ or error.__context__
    return None
