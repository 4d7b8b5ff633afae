"""Augmentation: the pipeline that makes it reproducible, and transforms that albumentations lacks."""

from datamodules.transforms.ctaugment import CTAugment
from datamodules.transforms.detection import MultiScaleCrop, RandomSizeCrop, ResizeShortestEdge, ScaleJitter
from datamodules.transforms.fixmatch import RandAugmentMC
from datamodules.transforms.photometric import PhotometricDistortion
from datamodules.transforms.pipeline import Pipeline, Transform
from datamodules.transforms.randaugment import AutoAugment, RandAugment
from datamodules.transforms.scene_pipeline import ScenePipeline
from datamodules.transforms.segmentation import ClassBalancedCrop, PaddedCrop, RandomBox, RandomLongSide
from datamodules.transforms.segmentation_pipeline import SegmentationPipeline
from datamodules.transforms.views import Views

__all__ = [
    "AutoAugment",
    "CTAugment",
    "ClassBalancedCrop",
    "MultiScaleCrop",
    "PaddedCrop",
    "PhotometricDistortion",
    "Pipeline",
    "RandAugment",
    "RandAugmentMC",
    "RandomBox",
    "RandomLongSide",
    "RandomSizeCrop",
    "ResizeShortestEdge",
    "ScaleJitter",
    "ScenePipeline",
    "SegmentationPipeline",
    "Transform",
    "Views",
]
