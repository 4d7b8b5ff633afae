"""The augmentations of the recipes for views, against torchvision's."""

from __future__ import annotations

from collections.abc import Callable

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as theirs

from datamodules.transforms.pipeline import Pipeline, SampleRandom
from datamodules.transforms.resizing import Resizing


def jitter(brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0) -> A.ColorJitter:
    return A.ColorJitter(*((value, value) for value in (brightness, contrast, saturation, hue)), p=1.0)


def picture() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    ("own", "their", "largest", "mean"),
    [
        (jitter(brightness=1.3), lambda image: theirs.adjust_brightness(image, 1.3), 0, 0.0),
        (jitter(brightness=0.6), lambda image: theirs.adjust_brightness(image, 0.6), 0, 0.0),
        (jitter(contrast=1.4), lambda image: theirs.adjust_contrast(image, 1.4), 1, 0.3),
        (jitter(contrast=0.6), lambda image: theirs.adjust_contrast(image, 0.6), 1, 0.3),
        # They round down what is rounded to the nearest here.
        (jitter(saturation=1.4), lambda image: theirs.adjust_saturation(image, 1.4), 1, 0.7),
        (jitter(saturation=0.6), lambda image: theirs.adjust_saturation(image, 0.6), 1, 0.7),
        # Hue has steps of two degrees here. Their own two ways, for bytes and for floats, are 12 levels apart.
        (jitter(hue=0.1), lambda image: theirs.adjust_hue(image, 0.1), 8, 0.8),
        (jitter(hue=-0.07), lambda image: theirs.adjust_hue(image, -0.07), 8, 0.8),
        (A.ToGray(p=1.0), lambda image: theirs.rgb_to_grayscale(image, 3), 1, 0.7),
        # The kernel ends at three and a half deviations, or where the recipe says.
        (A.GaussianBlur(sigma_limit=(0.5, 0.5), p=1.0), lambda image: theirs.gaussian_blur(image, 23, 0.5), 1, 0.05),
        (A.GaussianBlur(sigma_limit=(2.0, 2.0), p=1.0), lambda image: theirs.gaussian_blur(image, 23, 2.0), 1, 0.05),
        (A.GaussianBlur((23, 23), (2.0, 2.0), p=1.0), lambda image: theirs.gaussian_blur(image, 23, 2.0), 1, 0.01),
        (A.Solarize((0.5, 0.5), p=1.0), lambda image: theirs.solarize(image, 128), 0, 0.0),
        (A.HorizontalFlip(p=1.0), theirs.horizontal_flip, 0, 0.0),
        (A.Resize(20, 30), lambda image: theirs.resize(image, [20, 30]), 1, 0.01),
        (
            A.Resize(20, 30, interpolation=cv2.INTER_CUBIC),
            lambda image: theirs.resize(image, [20, 30], v2.InterpolationMode.BICUBIC),
            1,
            0.01,
        ),
    ],
)
def test_with_the_same_parameters_pixels_are_those_of_torchvision(
    own: A.BasicTransform, their: Callable[[Tensor], Tensor], largest: int, mean: float
) -> None:
    image = picture()
    made = Pipeline([own])({"image": image.copy()}, 0, 0)["image"]
    difference = np.abs(made.astype(int) - their(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy())
    assert difference.max() <= largest
    assert difference.mean() <= mean


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.4)])
def test_crops_are_drawn_as_by_torchvision(scale: tuple[float, float]) -> None:
    height, width = 375, 500
    crop, random = A.RandomResizedCrop((224, 224), scale), SampleRandom()
    their_crop = v2.RandomResizedCrop(224, scale)
    crop.set_random_state(random.numpy, random.python)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    own, their = [], []
    for index in range(1500):
        random.seed(0, 0, index)
        (left, top, right, bottom), *_ = Resizing(crop)._plan(height, width)
        own.append((left, top, right - left, bottom - top))
        y, x, rows, columns = their_crop.make_params([image]).values()
        their.append((x, y, columns, rows))
    # Two samples of one distribution are more than 0.06 apart once in a hundred.
    for of_crop in (
        lambda x, y, columns, rows: columns * rows,
        lambda x, y, columns, rows: columns / rows,
        lambda x, y, columns, rows: x,
        lambda x, y, columns, rows: y,
    ):
        assert ks_2samp([of_crop(*each) for each in own], [of_crop(*each) for each in their]).statistic < 0.06
