"""Usual transforms, the defaults of the data modules."""

from __future__ import annotations

import albumentations as A
import cv2

from datamodules.pixels import Pixels
from datamodules.transforms.detection import MultiScaleCrop, RandomSizeCrop, ResizeShortestEdge, ScaleJitter
from datamodules.transforms.pipeline import Transform

INTERPOLATIONS = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def small_image_augmentation(size: int = 32, shift: int = 4) -> list[Transform]:
    """A random shift over a zero border and a flip, as usual for CIFAR."""
    return [A.Pad(shift), A.RandomCrop(size, size), A.HorizontalFlip()]


def evaluate_at(size: int) -> list[Transform]:
    """A resize to one size, which leaves images of that size as they are."""
    return [A.Resize(size, size)]


def large_image_augmentation(pixels: Pixels) -> list[Transform]:
    """A random resized crop and a flip, as usual for ImageNet, at the size that weights state, else 224."""
    return [A.RandomResizedCrop(pixels.size or (224, 224)), A.HorizontalFlip()]


def gentle_augmentation(pixels: Pixels) -> list[Transform]:
    """For fine-tuning on few images: a crop of most of the image, a flip, and colours that change a little."""
    return [
        A.RandomResizedCrop(pixels.size or (224, 224), scale=(0.35, 1.0)),
        A.HorizontalFlip(),
        A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.02, 0.02), p=0.5),
    ]


def evaluate_centre(pixels: Pixels) -> list[Transform]:
    """A resize of the shorter side and a centre crop: as weights state it, else 224 of 256 pixels, as for ImageNet."""
    height, width = pixels.size or (224, 224)
    resized = int(min(height, width) / (pixels.crop or 0.875))
    interpolation = INTERPOLATIONS[pixels.interpolation or "bilinear"]
    crop = A.CenterCrop(height, width, pad_if_needed=resized < max(height, width))
    return [A.SmallestMaxSize(resized, interpolation=interpolation), crop]


def detr_augmentation(resize_first: bool = False) -> list[Transform]:
    """A flip, then a resize to 480..800 or a crop and that resize, as usual for the DETR family."""
    return [A.HorizontalFlip(), MultiScaleCrop(resize_first=resize_first)]


def jittered_scenes(size: int) -> list[Transform]:
    """For fine-tuning on few images with objects: a flip, another size, a crop, and colours that change a little."""
    return [
        A.HorizontalFlip(),
        ScaleJitter(size, (0.6, 1.4)),
        RandomSizeCrop(size, size),
        A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.02, 0.02), p=0.5),
    ]


def evaluate_shortest_edge(size: int = 800, max_size: int = 1333) -> list[Transform]:
    """The shorter side to one size unless the longer would exceed its limit, as usual for COCO."""
    return [ResizeShortestEdge([size], max_size)]
