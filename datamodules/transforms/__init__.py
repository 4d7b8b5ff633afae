"""Augmentation: the pipeline that makes it reproducible, and transforms that albumentations lacks."""

from datamodules.transforms.detection import MultiScaleCrop, RandomSizeCrop, ResizeShortestEdge, ScaleJitter
from datamodules.transforms.pipeline import Pipeline, Transform
from datamodules.transforms.randaugment import AutoAugment, RandAugment
from datamodules.transforms.scene_pipeline import ScenePipeline

__all__ = [
    "AutoAugment",
    "MultiScaleCrop",
    "Pipeline",
    "RandAugment",
    "RandomSizeCrop",
    "ResizeShortestEdge",
    "ScaleJitter",
    "ScenePipeline",
    "Transform",
]
