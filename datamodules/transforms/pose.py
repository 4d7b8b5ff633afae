"""People cut out of images, and the heat maps of their joints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from typing_extensions import override

from datamodules.errors import DataError, OptionError
from datamodules.transforms.pipeline import Pipeline, Transform
from datamodules.transforms.resizing import Resizing

# A person's scale counts in these.
PIXELS = 200
# A cell of the heat maps in pixels of the network's input.
STRIDE = 4
# How far beyond its image a joint may be annotated, as a share of the person's size: limbs that the frame cuts off are.
OVERHANG = 0.1


@dataclass(frozen=True)
class Person:
    """One person in an image.

    Args:
        centre: x, y in pixels, from 0, float64 [2].
        scale: Size in units of 200 pixels.
        joints: x, y in pixels, from 0, and 1 where annotated, else 0, float64 [J,3]; None for a person to predict on.
        mirrored: Joint that takes the place of each one in a mirror, int64 [J].
        head_size: What errors are measured in, in pixels; None for a person to train on.
        heatmaps: Target, float32 [J,h,w], once it is made.
        weight: 1 for joints that have a target, else 0, float32 [J].
    """

    centre: np.ndarray
    scale: float
    joints: np.ndarray | None
    mirrored: np.ndarray
    head_size: float | None = None
    heatmaps: np.ndarray | None = None
    weight: np.ndarray | None = None


def crop_matrix(centre: np.ndarray, scale: float, rotation: float, size: tuple[int, int]) -> np.ndarray:
    """The map from an image to the upright square around a person, as arXiv 1902.09212's code cuts it.

    ``200 * scale`` pixels become the width of the result; a height that differs shows more or less of the image.

    Args:
        centre: x, y in pixels; becomes the middle of the result.
        scale: Size in units of 200 pixels.
        rotation: Degrees that the square is turned by, clockwise on the screen.
        size: Height and width of the result in pixels.

    Returns:
        Affine map of (x, y, 1), float64 [2,3].
    """
    height, width = size
    zoom = width / (PIXELS * scale)
    angle = np.deg2rad(rotation)
    turn = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, np.array([width, height]) / 2 - turn @ centre])


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points [...,2] through an affine map [2,3]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def heatmap_targets(
    joints: np.ndarray, annotated: np.ndarray, size: tuple[int, int], stride: np.ndarray | float, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """One Gaussian a joint, with peak 1, about the nearest cell and cut off at three sigma.

    Args:
        joints: x, y in pixels of the network's input, [J,2].
        annotated: 1 for joints to draw, else 0, [J].
        size: Height and width of the maps.
        stride: Pixels of a cell, or of its width and height.
        sigma: Standard deviation of the Gaussians in cells.

    Returns:
        Maps, float32 [J,h,w], and weights, float32 [J], 0 for joints that are not annotated or whose Gaussian lies
        outside. Maps of weight 0 are empty.
    """
    nearest = np.trunc(joints / stride + 0.5)
    # Cut towards zero, as published; it matters for a sigma that is no integer.
    low, high = np.trunc(nearest - 3 * sigma), np.trunc(nearest + 3 * sigma + 1)
    middle = low + (6 * sigma + 1) // 2
    height, width = size
    weight = (annotated > 0) & (low < [width, height]).all(1) & (high >= 0).all(1)
    columns, rows = (
        np.exp(-((np.arange(length) - middle[:, axis, None]) ** 2) / (2 * sigma**2))
        * (np.arange(length) >= low[:, axis, None])
        * (np.arange(length) < high[:, axis, None])
        for axis, length in ((0, width), (1, height))
    )
    maps = rows[:, :, None] * columns[:, None, :] * weight[:, None, None]
    return maps.astype(np.float32), weight.astype(np.float32)


def joints_of(heatmaps: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Where the joints are that heat maps were drawn of, to the cell.

    Args:
        heatmaps: float32 [J,h,w].
        weight: 0 for joints that have none, [J].

    Returns:
        x, y in pixels of the network's input, and 1 or 0, float64 [J,3].
    """
    rows, columns = np.unravel_index(heatmaps.reshape(len(heatmaps), -1).argmax(1), heatmaps.shape[1:])
    return np.column_stack([columns * STRIDE, rows * STRIDE, weight > 0]).astype(np.float64)


class PersonCrop(A.BasicTransform):
    """Cuts the square around a person, at random if asked to, and draws the heat maps of the joints in it.

    As published for HRNet on MPII (arXiv 1902.09212): the scale is multiplied by ``1 + scale * n``, n normal, kept
    within ``1 -+ scale``; the square is turned by ``rotation * n`` degrees, kept within twice that; a mirror exchanges
    left and right joints. What lies outside of the image is black.

    Args:
        size: Height and width of the result in pixels, multiples of 32.
        sigma: Standard deviation of the heat maps' Gaussians in cells of 4 pixels.
        scale: Standard deviation of the scale, below 1; 0 keeps it.
        rotation: Standard deviation of the rotation in degrees; 0 keeps people as they are.
        rotation_prob: Share of the people that are turned.
        flip: Share of the people that are mirrored.

    Raises:
        OptionError: If an argument is out of range.
    """

    def __init__(
        self,
        size: tuple[int, int] = (256, 256),
        sigma: float = 2.0,
        scale: float = 0.0,
        rotation: float = 0.0,
        rotation_prob: float = 0.6,
        flip: float = 0.0,
    ) -> None:
        if any(side < 32 or side % 32 for side in size):
            raise OptionError(f"size={tuple(size)} must be a height and a width that are multiples of 32.")
        if not (sigma > 0 and 0 <= scale < 1 and rotation >= 0 and 0 <= rotation_prob <= 1 and 0 <= flip <= 1):
            raise OptionError(
                f"sigma={sigma} must be above 0, scale={scale} in [0, 1), rotation={rotation} not negative, "
                f"rotation_prob={rotation_prob} and flip={flip} in [0, 1]."
            )
        super().__init__(p=1.0)
        self.size, self.sigma = (int(size[0]), int(size[1])), sigma
        self.scale, self.rotation, self.rotation_prob, self.flip = scale, rotation, rotation_prob, flip

    @property
    @override
    def targets(self) -> dict[str, Callable[..., Any]]:
        """What it changes: ``image``, uint8 [H,W,3], and ``person``, a ``Person``."""
        return {"image": self.apply, "person": self.apply_to_person}

    @property
    @override
    def targets_as_params(self) -> list[str]:
        return ["person"]

    @override
    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        person, random = data["person"], self.random_generator
        factor = 1 + np.clip(self.scale * random.standard_normal(), -self.scale, self.scale)
        rotation = np.clip(self.rotation * random.standard_normal(), -2 * self.rotation, 2 * self.rotation)
        rotation = rotation if random.random() < self.rotation_prob else 0.0
        flipped = random.random() < self.flip
        centre, mirror = person.centre, np.eye(3)
        if flipped:
            last = params["shape"][1] - 1
            centre, mirror = np.array([last - centre[0], centre[1]]), np.array([[-1, 0, last], [0, 1, 0], [0, 0, 1.0]])
        # One map for the mirror and the crop: pixels are interpolated once.
        return {"matrix": crop_matrix(centre, person.scale * factor, rotation, self.size) @ mirror, "flipped": flipped}

    @override
    def apply(self, img: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        return cv2.warpAffine(img, matrix, self.size[::-1], flags=cv2.INTER_LINEAR)

    def apply_to_person(self, person: Person, matrix: np.ndarray, flipped: bool, **params: Any) -> Person:
        """Draws the heat maps; the joints stay those of the whole image."""
        if person.joints is None:
            return person
        joints = person.joints[person.mirrored] if flipped else person.joints
        cells = (self.size[0] // STRIDE, self.size[1] // STRIDE)
        points = transform_points(joints[:, :2], matrix)
        heatmaps, weight = heatmap_targets(points, joints[:, 2], cells, STRIDE, self.sigma)
        return replace(person, heatmaps=heatmaps, weight=weight)


class PosePipeline(Pipeline):
    """A list of transforms, applied to an image and the person in it.

    Args:
        transforms: albumentations transforms, applied in order; one of them is a ``PersonCrop``.
        seed: Run's seed.

    Raises:
        OptionError: If none is.
    """

    @override
    def first_step(self, transforms: list[Transform]) -> Resizing | None:
        """Nothing: a resize would have to move the joints, too."""
        return None

    @override
    def composed(self, transforms: list[Transform]) -> A.Compose:
        """The transforms as one."""
        if not any(isinstance(transform, PersonCrop) for transform in transforms):
            raise OptionError("transforms of people need a datamodules.transforms.pose.PersonCrop")
        return A.Compose(transforms)

    @override
    def __call__(self, sample: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """Decodes and transforms one sample.

        Args:
            sample: ``image`` (``Encoded`` or array [H,W,3] uint8) and ``person``; without, the whole image is one.
            epoch: Epoch, from 0.
            index: Position in the split.

        Returns:
            ``image`` uint8 [h,w,3]. Of a person to train on or to evaluate also ``heatmaps`` float32 [J,h/4,w/4] and
            ``weight`` float32 [J]; of a person to predict on or to evaluate ``centre`` float32 [2] and ``scale``
            float32; of a person to evaluate ``joints`` float32 [J,3] and ``head_size`` float32 (see ``Person``).

        Raises:
            DataError: If the image cannot be decoded or a joint lies outside.
        """
        self.random.seed(self.seed, epoch, index)
        image = self.decoded(sample["image"], "person" in sample)
        person = sample["person"] if "person" in sample else whole_image(image.shape[:2])
        refuse_outside(person, image.shape[:2])
        done = self.compose(image=image, person=person)
        person = done["person"]
        fields: dict[str, Any] = {"image": done["image"]}
        if person.heatmaps is not None:
            fields |= {"heatmaps": torch.from_numpy(person.heatmaps), "weight": person.weight}
        if person.joints is None or person.head_size is not None:
            fields |= {"centre": person.centre.astype(np.float32), "scale": np.float32(person.scale)}
        if person.head_size is not None:
            fields |= {"joints": person.joints.astype(np.float32), "head_size": np.float32(person.head_size)}
        return fields


def whole_image(size: tuple[int, int]) -> Person:
    """A person as large as an image of this height and width, without joints."""
    height, width = size
    return Person(np.array([width / 2, height / 2]), max(height, width) / PIXELS, None, np.empty(0, np.int64))


def refuse_outside(person: Person, size: tuple[int, int]) -> None:
    """Refuses annotated joints that are far outside an image of this height and width.

    Raises:
        DataError: If there is one; the message says which.
    """
    if person.joints is None:
        return
    height, width = size
    margin = OVERHANG * PIXELS * person.scale
    points = person.joints[:, :2]
    outside = ((points < -margin) | (points > np.array([width, height]) + margin)).any(1) & (person.joints[:, 2] > 0)
    if outside.any():
        joint = int(np.flatnonzero(outside)[0])
        x, y = points[joint]
        raise DataError(
            f"joint {joint} is annotated at ({x:.0f}, {y:.0f}), outside of the image of {width}x{height} pixels by "
            "more than a tenth of the person's size. Correct it, or mark it as missing."
        )


def mpii_augmentation() -> list[Transform]:
    """Training transforms of HRNet on MPII: 256x256 pixels, scale 0.25, rotation 30 degrees, mirror."""
    return [PersonCrop(scale=0.25, rotation=30.0, flip=0.5)]


def evaluate_person() -> list[Transform]:
    """Evaluation transforms of HRNet on MPII: 256x256 pixels."""
    return [PersonCrop()]
