"""Images of different sizes in one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.mistakes import Mistake


def pad(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack images, filled with zeros at the right and at the bottom up to the largest height and width.

    Args:
        images: B images [C, h, w], each of its own size.

    Returns:
        Images [B, C, H, W], and their padding [B, H, W], bool, True where there is no image.

    Raises:
        Mistake: No images.
    """
    if not images:
        raise Mistake("no images: a batch holds at least one")
    height = max(image.shape[-2] for image in images)
    width = max(image.shape[-1] for image in images)
    margins = [(0, width - image.shape[-1], 0, height - image.shape[-2]) for image in images]
    batch = [F.pad(image, margin) for image, margin in zip(images, margins, strict=True)]
    padding = [
        F.pad(torch.zeros_like(image[0], dtype=torch.bool), margin, value=True)
        for image, margin in zip(images, margins, strict=True)
    ]
    return torch.stack(batch), torch.stack(padding)


def output_sizes(images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None) -> list[tuple[int, int]]:
    """Height and width in whose pixels the detections of each image are reported.

    Args:
        images: [C, h, w] each, as the network got them.
        targets: One for each image; those with an `original_size` ask for its pixels, the others for the image's own.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    if targets is None:
        return sizes
    return [target.get("original_size", size) for target, size in zip(targets, sizes, strict=True)]
