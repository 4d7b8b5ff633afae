"""Augmentation: the pipeline that makes it reproducible, and transforms that albumentations lacks."""

from datamodules.transforms.pipeline import Pipeline, Transform

__all__ = ["Pipeline", "Transform"]
