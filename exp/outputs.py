"""Which callbacks draw pictures and write files, and where a command lets them."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback

from callbacks import ComputeBudget, ExitCurve, ThresholdCurve
from callbacks.detection_pictures import DetectionFiles, DetectionPictures
from callbacks.dynamic_pictures import DynamicPictures
from callbacks.pictures import ClassificationPictures
from callbacks.pose_pictures import PoseFiles, PosePictures
from callbacks.route_pictures import RoutePictures
from callbacks.segmentation_pictures import SegmentationFiles, SegmentationPictures

# Of these every run has one; each knows its task and leaves the others alone.
PICTURES = (
    ClassificationPictures,
    DynamicPictures,
    DetectionPictures,
    SegmentationPictures,
    RoutePictures,
    PosePictures,
)
FILES = (DetectionFiles, SegmentationFiles, PoseFiles)


def task_outputs() -> list[Callback]:
    """One callback of each kind."""
    return [kind() for kind in (*PICTURES, *FILES)]


def place(callbacks: list[Callback], pictures: Path, files: Path) -> None:
    """Tells all callbacks that draw or write where to.

    Args:
        callbacks: of the trainer.
        pictures: folder of what they draw.
        files: folder of what they write.
    """
    for callback in callbacks:
        if isinstance(callback, (*PICTURES, ComputeBudget, ExitCurve, ThresholdCurve)):
            callback.folder = pictures
        elif isinstance(callback, FILES):
            callback.folder = files
        if isinstance(callback, (RoutePictures, ThresholdCurve)):
            callback.files = files
