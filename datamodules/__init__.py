"""Data sets for training: one module a data set layout, on one sampler, loader and decoder."""

import os

# albumentations asks the internet for its newest version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from datamodules.base import DataModule
from datamodules.cifar import CIFAR10, CIFAR100
from datamodules.coco import Coco
from datamodules.digits import Digits
from datamodules.errors import DataError
from datamodules.folders import ImageFolder
from datamodules.imagenet import ImageNet
from datamodules.packed import PackedImages
from datamodules.scenes import DigitScenes

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Coco",
    "DataError",
    "DataModule",
    "DigitScenes",
    "Digits",
    "ImageFolder",
    "ImageNet",
    "PackedImages",
]
