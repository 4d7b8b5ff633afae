"""Files of CIFAR."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import CIFAR10

PER_FILE = 20


def write(root: Path, kind: type[CIFAR10], monkeypatch: pytest.MonkeyPatch, **changed: Any) -> np.ndarray:
    """Writes the official files with random pixels, and their MD5s where torchvision keeps the official ones."""
    official = kind.official
    classes = 10 if kind is CIFAR10 else 100
    folder = root / official.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def save(name: str, content: Any) -> str:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    pixels = []
    lists: dict[str, list[list[str]]] = {}
    for part in ("train_list", "test_list"):
        lists[part] = []
        for name, _ in getattr(official, part):
            images = random.integers(0, 256, (PER_FILE, 3072), np.uint8)
            pixels.append(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels = [int(k) for k in np.arange(PER_FILE) % classes]
            lists[part].append([name, save(name, {"data": images, kind.labels_key: labels} | changed)])
    meta = official.meta | {"md5": save(official.meta["filename"], {kind.names_key: [f"c{k}" for k in range(classes)]})}
    monkeypatch.setattr(official, "meta", meta)
    for part, files in lists.items():
        monkeypatch.setattr(official, part, files)
    return np.concatenate(pixels)
