"""Applies transforms to an image together with its labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import albumentations as A
import cv2
from typing_extensions import override

from datamodules.errors import OptionError
from datamodules.label_maps import VOID
from datamodules.masks import EncodedMask
from datamodules.transforms.pipeline import Pipeline, Transform
from datamodules.transforms.resizing import Resizing


class SegmentationPipeline(Pipeline):
    """A list of transforms, applied to a training image and its labels, or to an evaluation image alone.

    Args:
        transforms: albumentations transforms, applied in order.
        seed: Run's seed.
    """

    @override
    def first_step(self, transforms: list[Transform]) -> Resizing | None:
        """Nothing: a resize moves labels too, and images alone must be resized in the same way."""
        return None

    @override
    def __call__(self, sample: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """Decodes and transforms one sample.

        Args:
            sample: ``image`` (``Encoded`` or array [H,W,3] uint8) and, where there are labels, either ``mask``
                (``EncodedMask``), which moves with the image, or ``annotation`` (``EncodedMask`` or train ids [H,W]
                uint8), which does not.
            epoch: Epoch, from 0.
            index: Position in the split.

        Returns:
            ``image`` uint8 [H',W',3] and, where there are labels, ``label`` uint8: of the size of the image that is
            returned for ``mask``, and of the size of the file for ``annotation``.

        Raises:
            DataError: If the image or its labels cannot be decoded or differ in size.
        """
        self.random.seed(self.seed, epoch, index)
        image = self.decoded(sample["image"], "mask" in sample or "annotation" in sample)
        size = (int(image.shape[0]), int(image.shape[1]))
        if "mask" in sample:
            done = self.compose(image=image, mask=sample["mask"].decode(size))
            return {"image": done["image"], "label": done["mask"]}
        done = {"image": self.compose(image=image)["image"]}
        if "annotation" in sample:
            annotation = sample["annotation"]
            done["label"] = annotation.decode(size) if isinstance(annotation, EncodedMask) else annotation
        return done


def refuse_labelled_fill(transforms: Iterable[Transform]) -> None:
    """Refuses transforms that would label the pixels they add, as albumentations' do by default.

    Args:
        transforms: Transforms of images with labels.

    Raises:
        OptionError: If a transform fills labels with anything but void.
    """
    for transform in _all(transforms):
        fill = getattr(transform, "fill_mask", None)
        adds = getattr(transform, "pad_if_needed", True)
        constant = getattr(transform, "border_mode", cv2.BORDER_CONSTANT) == cv2.BORDER_CONSTANT
        if adds and constant and fill is not None and fill != VOID:
            raise OptionError(
                f"{type(transform).__name__} labels the pixels that it adds as class {fill}: set its fill_mask to "
                f"{VOID}, which is void."
            )


def _all(transforms: Iterable[Transform]) -> Iterator[A.BasicTransform]:
    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            yield from _all(transform.transforms)
        else:
            yield transform
