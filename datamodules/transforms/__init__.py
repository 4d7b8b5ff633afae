"""Augmentation: the pipeline that makes it reproducible, and transforms that albumentations lacks."""

from datamodules.transforms.pipeline import Pipeline, Transform
from datamodules.transforms.randaugment import AutoAugment, RandAugment

__all__ = ["AutoAugment", "Pipeline", "RandAugment", "Transform"]
