"""Images are turned upright as EXIF says, and annotations are for the image as viewers show it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import DataError
from datamodules.decoding import TURNS, Encoded
from datamodules.label_maps import LabelMap
from datamodules.masks import EncodedMask
from datamodules.transforms.scene_pipeline import ScenePipeline
from datamodules.transforms.segmentation_pipeline import SegmentationPipeline


def stored(path: Path, upright: np.ndarray, orientation: int) -> Path:
    """Writes an image so that it is upright when it is turned as its EXIF block says."""
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(orientation, TURNS.get(orientation))
    image = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (image if back is None else image.transpose(back)).save(path, exif=exif.tobytes())
    return path


def scene(path: Path, size: tuple[int, int]) -> dict[str, Any]:
    boxes, labels = np.array([[1.0, 1, 3, 3]]), np.zeros(1, np.int64)
    return {"image": Encoded(path), "target": {"original_size": size, "boxes": boxes, "labels": labels}}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [8, 12])
def test_what_the_size_cannot_tell_is_said_once(tmp_path: Path, orientation: int, side: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (8, side, 3), np.uint8)
    path = stored(tmp_path / "x.png", upright, orientation)
    pipeline = ScenePipeline([])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            assert np.array_equal(pipeline(scene(path, (8, side)), 0, 0)["image"], upright)
        # Nothing is annotated here.
        ScenePipeline([])({"image": Encoded(path)}, 0, 0)
    unseen = orientation in (2, 3, 4) or (orientation > 4 and side == 8)
    assert len(told) == unseen
    if unseen:
        assert f"{path} is turned upright, as its EXIF orientation {orientation} says" in str(told[0].message)
    if side != 8:
        reason = "EXIF orientation turns it upright" if orientation > 4 else "Use the image that was annotated"
        with pytest.raises(DataError, match=reason):
            pipeline(scene(path, (side, 8)), 0, 0)


def test_label_files_are_turned_as_images_are(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 1], [1, 1, 0]], np.uint8)
    image = stored(tmp_path / "x.png", np.repeat(labels[..., None] * 255, 3, axis=2), 6)
    mask = EncodedMask(stored(tmp_path / "y.png", labels, 6), LabelMap(("a", "b"), ((1, 1, 1), (2, 2, 2)), (0, 1)))
    done = SegmentationPipeline([])({"image": Encoded(image), "mask": mask}, 0, 0)
    assert np.array_equal(done["label"], labels)
    assert np.array_equal(done["image"][..., 0], labels * 255)
    # A label file that was written for the image as it is stored.
    Image.fromarray(labels.T).save(tmp_path / "y.png")
    with pytest.raises(DataError, match="it has 2x3 pixels and its image 3x2"):
        SegmentationPipeline([])({"image": Encoded(image), "mask": mask}, 0, 0)
