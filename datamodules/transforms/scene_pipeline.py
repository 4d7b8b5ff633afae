"""Applies transforms to an image together with its objects."""

from __future__ import annotations

import warnings
from typing import Any

import albumentations as A
import numpy as np
import torch
from typing_extensions import override

from datamodules.decoding import Encoded
from datamodules.errors import DataError
from datamodules.transforms.packed_masks import unpack
from datamodules.transforms.pipeline import Pipeline, Transform
from datamodules.transforms.resizing import Resizing

# Coordinates are relative and in single precision on their way: at 1333 pixels, rounding makes 1e-4 of a pixel.
MIN_SIDE = 1e-3


class ScenePipeline(Pipeline):
    """A list of transforms, applied to an image, its boxes, masks and keypoints.

    An object stays as long as its box, clipped to the image, has an area; its mask may be empty by then.

    Args:
        transforms: albumentations transforms, applied in order.
        seed: Run's seed.
    """

    @override
    def first_step(self, transforms: list[Transform]) -> Resizing | None:
        """Nothing: a resize moves objects too."""
        return None

    @override
    def composed(self, transforms: list[Transform]) -> A.Compose:
        """The transforms after decoding as one."""
        with warnings.catch_warnings():
            # Transforms of the image alone are no mistake.
            warnings.filterwarnings("ignore", message="Got processor for")
            return A.Compose(
                transforms,
                bbox_params=A.BboxParams("pascal_voc", min_width=MIN_SIDE, min_height=MIN_SIDE),
                keypoint_params=A.KeypointParams("xy", remove_invisible=False),
            )

    @override
    def __call__(self, sample: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """Decodes and transforms one sample.

        Args:
            sample: ``image`` (``Encoded`` or array [H,W,3] uint8) and, where the image has objects, ``target`` with
                ``boxes`` float [n,4] xyxy pixels within the image, ``labels`` int64 [n], and maybe ``masks`` packed
                uint8 [H,W,ceil(n/8)], ``keypoints`` float [n,K,3] (x, y, visibility), ``mirrored`` int64 [K] (which
                keypoint each becomes in a mirror) and fields that are not transformed.
            epoch: Epoch, from 0.
            index: Position in the split.

        Returns:
            The sample with ``image`` uint8 [H',W',3] and ``target`` with ``original_size`` (H, W) and tensors:
            ``boxes`` float32 [m,4], ``labels`` int64 [m], ``masks`` bool [m,H',W'], ``keypoints`` float32 [m,K,3].

        Raises:
            DataError: If the image cannot be decoded or has not the size that its record says.
        """
        self.random.seed(self.seed, epoch, index)
        image = self.decoded(sample["image"], "target" in sample)
        size = (int(image.shape[0]), int(image.shape[1]))
        target = {"original_size": size} | sample.get("target", {})
        if target["original_size"] != size:
            height, width = target["original_size"]
            turned = isinstance(sample["image"], Encoded) and sample["image"].orientation >= 5
            remedy = (
                "Its EXIF orientation turns it upright, and annotations must be for that; or write its pixels upright."
                if turned and (width, height) == size
                else "Use the image that was annotated."
            )
            raise DataError(
                f"the image has {size[1]}x{size[0]} pixels and its annotations are for {width}x{height}: they would "
                f"not fit. {remedy}"
            )
        boxes = target.get("boxes")
        given: dict[str, Any] = {"image": image, "bboxes": np.empty((0, 5), np.float32)}
        if boxes is not None:
            given["bboxes"] = np.concatenate([boxes, np.arange(len(boxes))[:, None]], axis=1, dtype=np.float32)
        masks, keypoints = target.get("masks"), target.get("keypoints")
        if masks is not None and len(boxes):
            given["mask"] = masks
        if keypoints is not None:
            given["keypoints"] = np.concatenate([_FRAME, keypoints[..., :2].reshape(-1, 2)]).astype(np.float32)
        done = self.compose(**given)
        if boxes is None:
            return sample | {"image": done["image"], "target": target}
        found = np.asarray(done["bboxes"], np.float32).reshape(-1, 5)
        kept = found[:, 4].astype(np.int64)
        target["boxes"] = torch.from_numpy(np.ascontiguousarray(found[:, :4]))
        target["labels"] = torch.from_numpy(target["labels"][kept])
        if masks is not None:
            packed = done.get("mask", np.empty((*done["image"].shape[:2], 0), np.uint8))
            target["masks"] = unpack(packed, kept)
        if keypoints is not None:
            mirrored = target.pop("mirrored")
            target["keypoints"] = _moved(keypoints, np.asarray(done["keypoints"]), mirrored, done["image"].shape)[kept]
        return sample | {"image": done["image"], "target": target}


# Three points that travel with the keypoints and tell whether the picture was mirrored.
_FRAME = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def _moved(keypoints: np.ndarray, points: np.ndarray, mirrored: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """Keypoints [n,K,3] at their new places, left for right in a mirror; zero where unlabelled or out of the image."""
    origin, right, down = points[:3, :2]
    (a, b), (c, d) = right - origin, down - origin
    moved = np.concatenate([points[3:, :2].reshape(*keypoints.shape[:2], 2), keypoints[..., 2:]], axis=2)
    if a * d - b * c < 0:
        moved = moved[:, mirrored]
    x, y = moved[..., 0], moved[..., 1]
    inside = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0]) & (moved[..., 2] > 0)
    return torch.from_numpy((moved * inside[..., None]).astype(np.float32))
