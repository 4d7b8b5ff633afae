"""Data sets for training: one module a data set layout, on one sampler, loader and decoder."""

import os

# albumentations asks the internet for its newest version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from datamodules.ade20k import ADE20K
from datamodules.base import DataModule
from datamodules.cifar import CIFAR10, CIFAR100
from datamodules.cityscapes import CamVid, Cityscapes
from datamodules.coco import Coco
from datamodules.digit_questions import DigitQuestions
from datamodules.digit_references import DigitReferences
from datamodules.digit_streets import DigitStreets
from datamodules.digits import Digits
from datamodules.errors import DataError
from datamodules.folders import ImageFolder
from datamodules.imagenet import ImageNet
from datamodules.mpii import MPII
from datamodules.own_boxes import OwnBoxes
from datamodules.own_images import OwnImages
from datamodules.own_poses import OwnPoses
from datamodules.packed import PackedImages
from datamodules.pixels import Pixels
from datamodules.referring import Referring
from datamodules.scenes import DigitScenes
from datamodules.segmentation_folder import SegmentationFolder
from datamodules.stick_figures import StickFigures
from datamodules.unlabelled import UnlabelledFolder
from datamodules.views import FewLabels, MultiView, View
from datamodules.vqa import CLEVR, VQA

__all__ = [
    "ADE20K",
    "CIFAR10",
    "CIFAR100",
    "CLEVR",
    "MPII",
    "VQA",
    "CamVid",
    "Cityscapes",
    "Coco",
    "DataError",
    "DataModule",
    "DigitQuestions",
    "DigitReferences",
    "DigitScenes",
    "DigitStreets",
    "Digits",
    "FewLabels",
    "ImageFolder",
    "ImageNet",
    "MultiView",
    "OwnBoxes",
    "OwnImages",
    "OwnPoses",
    "PackedImages",
    "Pixels",
    "Referring",
    "SegmentationFolder",
    "StickFigures",
    "UnlabelledFolder",
    "View",
]
