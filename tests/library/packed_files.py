"""Files of packed images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def arrays(
    n: int = 40, classes: int = 4, form: str = "PNG", sizes: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """n images of 32x32, or of other sides, whose grey level is 6 * number."""
    files = []
    for number, side in enumerate(sizes or [32] * n):
        stream = io.BytesIO()
        Image.new("RGB", (side, side), (6 * number,) * 3).save(stream, form)
        files.append(stream.getvalue())
    return {
        "data": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.arange(n) * classes // n,
        "classes": np.array([f"class {k}" for k in range(classes)]),
    }


def pack(folder: Path, compressed: bool = True, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    content = {key: value for key, value in (arrays() | changed).items() if value is not None}
    for split in ("train", "test"):
        (np.savez_compressed if compressed else np.savez)(folder / f"{split}.npz", **content)
    return folder
