"""Augmentation: the pipeline that makes it reproducible, and transforms that albumentations lacks."""

from datamodules.transforms.pipeline import Pipeline, Transform
from datamodules.transforms.randaugment import RandAugment

__all__ = ["Pipeline", "RandAugment", "Transform"]
