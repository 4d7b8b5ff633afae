"""Files of street scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def street(root: Path, split: str, number: int, kind: str = "labelIds") -> tuple[Path, Path]:
    name = f"ulm_{number:06d}_000019"
    image = root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png"
    return image, root / "gtFine" / split / "ulm" / f"{name}_gtFine_{kind}.png"
