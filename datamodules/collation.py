"""Samples of equal shape to batches."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from datamodules.errors import DataError


def stack(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins samples of equal shape: images [H,W,C] become one contiguous tensor [B,C,H,W].

    Several views of each image, a list of [H,W,C], become a list of tensors [V,B,C,H,W], one for each size, in the
    order in which the sizes come; the views of one size keep theirs.

    Raises:
        DataError: If the images differ in size, or their views do.
    """
    batch: dict[str, Any] = {}
    for field in samples[0]:
        values = [sample[field] for sample in samples]
        if isinstance(values[0], list) and any(isinstance(view, np.ndarray) for view in values[0]):
            batch[field] = _views(values)
        elif isinstance(values[0], np.ndarray) and values[0].ndim == 3:
            batch[field] = _images(values)
        elif isinstance(values[0], torch.Tensor):
            batch[field] = torch.stack(values)
        else:
            batch[field] = torch.as_tensor(np.asarray(values))
    return batch


def _images(images: list[np.ndarray]) -> torch.Tensor:
    """Images [H,W,C] as [B,C,H,W]."""
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DataError(
            f"Images of one batch differ in size ({', '.join(map(str, sorted(shapes)[:3]))} ...). "
            "End the transforms with a crop or a resize to one size."
        )
    height, width, channels = images[0].shape
    planes = np.empty((len(images), channels, height, width), images[0].dtype)
    for image, target in zip(images, planes, strict=True):
        cv2.split(image, list(target))  # ten times faster than a transposing copy
    return torch.from_numpy(planes)


def _views(samples: list[list[np.ndarray]]) -> list[torch.Tensor]:
    """The views of each image, [H,W,C], as one tensor [V,B,C,H,W] for each size."""
    if len({len(views) for views in samples}) > 1:
        raise DataError("Images of one batch differ in their number of views. Every image needs the same.")
    places: dict[tuple[int, ...], list[int]] = {}
    for place, view in enumerate(samples[0]):
        places.setdefault(view.shape, []).append(place)
    return [
        _images([views[place] for place in alike for views in samples]).unflatten(0, (len(alike), len(samples)))
        for alike in places.values()
    ]
