"""How large the images are that a data module's evaluation yields."""

from __future__ import annotations

from datamodules import DataModule


def image_size(data: DataModule) -> tuple[int, ...]:
    """Channels, height and width."""
    return tuple(data.example()["image"][0].shape)
