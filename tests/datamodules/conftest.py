from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
