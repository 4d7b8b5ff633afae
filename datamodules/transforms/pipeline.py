"""Applies albumentations transforms so that every sample's randomness is a function of (seed, epoch, index)."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import albumentations as A
import numpy as np

from datamodules.decoding import Encoded
from datamodules.finding import shown
from datamodules.transforms.resizing import Resizing

Transform: TypeAlias = A.BasicTransform | A.BaseCompose
# From a sample, the epoch and its index in the split to the sample that a batch is made of: a ``Pipeline``, say.
Augmentation: TypeAlias = Callable[[dict[str, Any], int, int], dict[str, Any]]


class SampleRandom:
    """One numpy and one Python generator, pointed at a sample's own stream.

    Setting the state of two generators costs about 12 microseconds; ``Compose.set_random_seed`` builds two new ones
    for every transform (about 70 microseconds for six).
    """

    def __init__(self) -> None:
        self.numpy = np.random.Generator(np.random.PCG64(0))
        self.python = random.Random(0)

    def seed(self, seed: int, epoch: int, index: int) -> None:
        """Points both generators at the start of the stream of one sample."""
        words = [int(word) for word in np.random.SeedSequence([seed, epoch, index]).generate_state(5, np.uint64)]
        self.numpy.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": words[0] << 64 | words[1], "inc": words[2] << 64 | words[3] | 1},
            "has_uint32": 0,
            "uinteger": 0,
        }
        self.python.seed(words[4])


class Pipeline:
    """A list of transforms, applied to one sample.

    A crop or resize that comes first is done while decoding (``Resizing``).

    Args:
        transforms: albumentations transforms, applied in order.
        seed: Run's seed.
    """

    def __init__(self, transforms: Sequence[Transform], seed: int = 0) -> None:
        self.seed = seed
        self.random = SampleRandom()
        self._told_of_turns = False
        # Loaders of one data module are given the same transforms; their generators must not be.
        own = copy.deepcopy(list(transforms))
        self.resizing = self.first_step(own)
        self.compose = self.composed(own[1:] if self.resizing else own)
        # One pair of generators serves all transforms: only their state changes from sample to sample.
        self.compose.set_random_state(self.random.numpy, self.random.python)
        if self.resizing:
            self.resizing.transform.set_random_state(self.random.numpy, self.random.python)

    def first_step(self, transforms: list[Transform]) -> Resizing | None:
        """The first transform as a part of decoding, if it can be one."""
        return Resizing(transforms[0]) if transforms and Resizing.takes(transforms[0]) else None

    def composed(self, transforms: list[Transform]) -> A.Compose:
        """The transforms after decoding as one."""
        return A.Compose(transforms)

    def decoded(self, image: Encoded | np.ndarray, annotated: bool) -> np.ndarray:
        """The pixels of an image, whose annotations are for the image as viewers show it.

        Where the orientation of EXIF turns an image and its size stays the same, nobody could tell from the size that
        annotations are for the image as it is stored; that is said of the first such image.

        Raises:
            DataError: If the image cannot be decoded.
        """
        if not isinstance(image, Encoded):
            return image
        pixels = image.decode()
        unseen = image.orientation < 5 or len(pixels) == len(pixels[0])
        if annotated and unseen and image.is_turned and not self._told_of_turns:
            self._told_of_turns = True
            name = shown(image.data) if isinstance(image.data, Path) else "an image"
            warnings.warn(
                f"{name} is turned upright, as its EXIF orientation {image.orientation} says, and its size does not "
                "tell whether its annotations are: they are taken to be for the image as viewers show it, here and in "
                "every other such image. Write the pixels upright, without orientation, if they are not.",
                stacklevel=2,
            )
        return pixels

    def __call__(self, sample: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """Decodes and transforms one sample.

        Args:
            sample: ``image`` (``Encoded`` or array [H,W,3] uint8) and other fields.
            epoch: Epoch, from 0.
            index: Position in the split.

        Returns:
            The sample with ``image`` transformed, [H',W',3], and the other fields.

        Raises:
            DataError: If the image cannot be decoded.
        """
        self.random.seed(self.seed, epoch, index)
        image = sample["image"]
        if self.resizing:
            image = self.resizing(image)
        elif isinstance(image, Encoded):
            image = image.decode()
        return sample | {"image": self.compose(image=image)["image"]}
