from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.library.coco_files import CocoFiles


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpacked data of a test go where the test's files go."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EXP_CACHE", str(folder))
    return folder


@pytest.fixture
def photo() -> np.ndarray:
    """A smooth colour picture of 375x500 with some texture, uint8: a photograph as far as JPEG is concerned."""
    y, x = np.mgrid[0:375, 0:500].astype(np.float64)
    waves = [128 + 60 * np.sin(x / 37 + phase) * np.cos(y / 23) + 40 * np.sin((x + y) / 7) for phase in (0, 1, 2)]
    noise = np.random.default_rng(0).normal(0, 4, (375, 500, 3))
    return np.clip(np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def image_tree(tmp_path: Path) -> Path:
    """An image folder: train has 12 images of each of three classes; the grey level of an image is 20 * its number."""
    for label, name in enumerate(("ant", "bee", "cat")):
        folder = tmp_path / "tree" / "train" / name
        folder.mkdir(parents=True)
        for number in range(12):
            level = 20 * number
            pixels = np.full((24, 32, 3), level, np.uint8)
            pixels[..., 0] = 40 * label
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return tmp_path / "tree"


@pytest.fixture
def coco(tmp_path: Path) -> CocoFiles:
    """A COCO data set to be: three training images (an upright one, one without objects) and one validation image."""
    files = CocoFiles(tmp_path)
    first, upright, _ = files.image(), files.image(height=60, width=30), files.image()
    files.object(first, [10, 5, 20, 30])
    files.object(first, [0, 0, 4, 4], category_id=3)
    files.object(upright, [3.5, 40.25, 20, 15], category_id=7)
    files.object(files.image("val"), [5, 5, 10, 10], "val")
    return files
