"""Detectors in torchvision's convention: losses in training, boxes, labels, scores and masks in evaluation."""

from models.detectors.deformable_detr import DeformableDETR
from models.detectors.detr import DETR
from models.detectors.detr_segmentation import DETRSegmentation
from models.detectors.fcos import FCOS
from models.detectors.rcnn import CascadeMaskRCNN, FasterRCNN, MaskRCNN
from models.detectors.retinanet import RetinaNet
from models.detectors.smca import SMCA
from models.detectors.solq import SOLQ

__all__ = [
    "DETR",
    "FCOS",
    "SMCA",
    "SOLQ",
    "CascadeMaskRCNN",
    "DETRSegmentation",
    "DeformableDETR",
    "FasterRCNN",
    "MaskRCNN",
    "RetinaNet",
]
