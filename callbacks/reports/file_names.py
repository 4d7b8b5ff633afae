"""What pictures and files of single images are called: as the images, where the file system allows it."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

# Of a file name, in bytes; file systems allow 255, and a file that is being written has a longer name.
MAX_BYTES = 240


def file_names(data: Any, split: str) -> list[str]:
    """What the pictures of a split's images are called: as the images, which are told apart if they share a name.

    Args:
        data: The data module.
        split: `val`, `test` or `predict`.
    """
    stems = [Path(data.sample_name(split, index)).stem for index in range(len(data.source(split)))]
    counts = Counter(stems)
    taken = set(stems)
    names = []
    for index, stem in enumerate(stems):
        name = stem
        if counts[stem] > 1:
            name = f"{stem}_{index}"
            while name in taken:
                name += f"_{index}"
            taken.add(name)
        names.append(fitting(name, ".png"))
    return names


def picture_name(data: Any, index: int) -> str:
    """The file name of a picture of one image that is predicted; folders may have images of one name.

    Args:
        data: The data module.
        index: Position among the images that are predicted.
    """
    return fitting(f"{index:04d}_{Path(data.sample_name('predict', index)).stem}", ".png")


def fitting(stem: str, suffix: str) -> str:
    """A file name that is not too long: what does not fit gives way to a digest of the whole.

    Args:
        stem: The name without suffix, any text.
        suffix: What the name ends in.
    """
    name = stem.encode(errors="backslashreplace")
    if len(name) + len(suffix) > MAX_BYTES:
        digest = f"-{hashlib.sha256(name).hexdigest()[:8]}"
        name = name[: MAX_BYTES - len(suffix) - len(digest)] + digest.encode()
    # A letter of several bytes that was cut in two goes altogether.
    return name.decode(errors="ignore") + suffix
