from __future__ import annotations

from typing import Any

import albumentations as A
import numpy as np
import pytest

from datamodules.errors import DataError
from datamodules.mpii import MIRRORED
from datamodules.transforms.pose import STRIDE, Person, PersonCrop, PosePipeline, heatmap_targets

AUGMENTED: dict[str, Any] = {"scale": 0.25, "rotation": 30.0, "rotation_prob": 0.6, "flip": 0.5}


def person(joints: np.ndarray, **options: Any) -> Person:
    return Person(np.array([150.0, 120.0]), 0.8, joints, np.array(MIRRORED), **options)


def test_every_heat_map_peaks_where_the_joint_is_seen() -> None:
    """Also turned, scaled and mirrored; in a mirror, the map of the other side does."""
    pipeline = PosePipeline([PersonCrop((128, 96), sigma=1.0, **AUGMENTED)], seed=3)
    mirrors = 0
    for epoch in range(12):
        joint = epoch % 16
        joints = np.zeros((16, 3))
        joints[joint] = 160, 110 + epoch, 1
        image = np.zeros((240, 300, 3), np.uint8)
        image[108 + epoch : 113 + epoch, 158:163] = 255
        done = pipeline({"image": image, "person": person(joints)}, epoch, 0)
        (drawn,) = np.flatnonzero(done["weight"]).tolist()
        mirrors += drawn != joint
        assert drawn in (joint, MIRRORED[joint])
        rows, columns = np.nonzero(done["image"][..., 0] > 127)
        row, column = divmod(int(done["heatmaps"][drawn].argmax()), 96 // STRIDE)
        assert abs(row * STRIDE - rows.mean()) < STRIDE / 2 + 0.6
        assert abs(column * STRIDE - columns.mean()) < STRIDE / 2 + 0.6
    assert 0 < mirrors < 12


def test_a_sample_is_a_function_of_seed_epoch_and_index() -> None:
    image = np.random.default_rng(0).integers(0, 256, (240, 300, 3), np.uint8)
    sample = {"image": image, "person": person(np.full((16, 3), 120.0))}
    pipeline, again = (PosePipeline([PersonCrop((64, 64), **AUGMENTED), A.ColorJitter()], seed=1) for _ in range(2))
    first = pipeline(sample, 2, 7)
    pipeline(sample, 0, 0)
    for other in (pipeline(sample, 2, 7), again(sample, 2, 7)):
        assert (first["image"] == other["image"]).all()
        assert (first["heatmaps"] == other["heatmaps"]).all()
    assert (first["image"] != pipeline(sample, 3, 7)["image"]).any()


def test_joints_without_annotation_or_outside_have_no_target() -> None:
    joints = np.array([[20.0, 20.0], [20.0, 20.0], [90.0, 20.0], [69.0, 20.0]])
    maps, weight = heatmap_targets(joints, np.array([1, 0, 1, 1]), (16, 16), STRIDE, 2.0)
    assert weight.tolist() == [1, 0, 0, 1]
    assert maps[0].max() == 1
    assert not maps[1:3].any()
    # Its middle is outside and its border is not.
    assert 0 < maps[3].max() < 1


def test_fields_are_those_of_training_evaluation_and_prediction() -> None:
    pipeline = PosePipeline([PersonCrop((64, 64))])
    image, joints = np.zeros((240, 300, 3), np.uint8), np.full((16, 3), 100.0)
    training = pipeline({"image": image, "person": person(joints)}, 0, 0)
    evaluation = pipeline({"image": image, "person": person(joints, head_size=9.0)}, 0, 0)
    prediction = pipeline({"image": image}, 0, 0)
    assert set(training) == {"image", "heatmaps", "weight"}
    assert set(evaluation) == {"image", "heatmaps", "weight", "centre", "scale", "joints", "head_size"}
    assert set(prediction) == {"image", "centre", "scale"}
    assert prediction["centre"].tolist() == [150, 120]
    assert prediction["scale"] == 1.5


def test_a_joint_outside_of_its_image_is_refused() -> None:
    joints = np.full((16, 3), 100.0)
    # A tenth of the person is 16 pixels.
    joints[4, 0] = 315
    sample = {"image": np.zeros((240, 300, 3), np.uint8), "person": person(joints)}
    PosePipeline([PersonCrop((64, 64))])(sample, 0, 0)
    joints[4, 0] = 317
    with pytest.raises(DataError, match=r"joint 4 is annotated at \(317, 100\), outside of the image of 300x240"):
        PosePipeline([PersonCrop((64, 64))])(sample, 0, 0)
    joints[4, 2] = 0
    PosePipeline([PersonCrop((64, 64))])(sample, 0, 0)


@pytest.mark.parametrize(
    "options", [{"size": (60, 64)}, {"sigma": 0.0}, {"scale": 1.0}, {"rotation": -1.0}, {"flip": 1.5}], ids=str
)
def test_crops_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PersonCrop(**options)


def test_transforms_need_a_crop() -> None:
    with pytest.raises(ValueError, match="PersonCrop"):
        PosePipeline([A.ColorJitter()])
