from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import OwnPoses
from datamodules.errors import DataError
from datamodules.mpii import MIRRORED, SKELETON
from tests.library.keypoint_files import NAMES, write_keypoints


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_keypoints(tmp_path / "mine", train=6, val=4)
    return tmp_path / "mine"


def opened(root: Path, **options: Any) -> OwnPoses:
    data = OwnPoses(root, **{"batch_size": 2, "size": 64, "num_workers": 0} | options)
    data.setup("fit")
    return data


def change(root: Path, split: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = root / f"annotations/person_keypoints_{split}2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_joints_lines_and_mirror_are_those_of_the_file(root: Path) -> None:
    data = opened(root)
    assert data.described() == (
        f"{root}: COCO, 16 joints, {len(SKELETON)} lines between them, 6 train, 4 val people (layout: coco)"
    )
    assert data.class_names == NAMES
    assert tuple(data.mirrored) == MIRRORED
    assert [tuple(bone) for bone in data.skeleton] == list(SKELETON)
    assert not data.has("test")


def test_people_are_cut_out_a_quarter_wider_than_their_boxes(root: Path) -> None:
    change(root, "val", lambda content: content["annotations"][1].update(bbox=[10, 20, 40, 60]))
    data = opened(root)
    person = data.source("val").load(1)["person"]
    assert person.centre.tolist() == [30, 50]
    assert person.scale * 200 == pytest.approx(75)
    assert person.head_size == 60
    training, evaluation = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert set(training) == {"image", "heatmaps", "weight", "index"}
    assert training["image"].shape == (2, 3, 64, 64)
    assert training["heatmaps"].shape == (2, 16, 16, 16)
    assert evaluation["joints"].shape == (2, 16, 3)
    assert evaluation["head_size"].dtype == torch.float32
    # The hottest cell is the joint.
    maps, joints = evaluation["heatmaps"][0], evaluation["joints"][0, :, :2]
    corner = evaluation["centre"][0] - 100 * evaluation["scale"][0]
    cells = (joints - corner) / (200 * evaluation["scale"][0]) * 16
    peaks = maps.flatten(1).argmax(1)
    found = torch.stack([peaks % 16, peaks // 16], 1)
    assert (found - cells).abs().max() <= 0.51


def test_validation_people_are_held_out_by_images(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_keypoints(root, train=5)

    def twice(content: dict[str, Any]) -> None:
        again = [one | {"id": one["id"] + 100} for one in content["annotations"]]
        content["annotations"] += again

    change(root, "train", twice)
    data = opened(root, holdout=2)
    names = {
        split: {data.people(split).images[i] for i in range(len(data.people(split)))} for split in ("train", "val")
    }
    assert [len(data.people(split)) for split in names] == [6, 4]
    assert not names["train"] & names["val"]
    assert all(person.head_size is None for person in data.people("train").people)
    assert all(person.head_size for person in data.people("val").people)


def test_who_has_no_joints_is_left_aside(root: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["keypoints"] = [0] * 48
        content["annotations"][1]["iscrowd"] = 1
        content["annotations"][2]["keypoints"][2] = 0

    change(root, "train", edit)
    people = opened(root).people("train")
    assert people.numbers == [102, 103, 104, 105]
    assert people.people[0].joints is not None
    assert people.people[0].joints[:, 2].tolist() == [0, *[1] * 15]


@pytest.mark.parametrize(
    ("names", "partners"),
    [
        (["left_eye", "right_eye", "nose"], [1, 0, 2]),
        (["L eye", "R eye", "LOWER LIP"], [1, 0, 2]),
        (["eyeLeft", "eyeRight", "tail"], [1, 0, 2]),
        (["front left paw", "back left paw", "front right paw"], [2, 1, 0]),
        (["bright", "aleft", "r"], [0, 1, 2]),
    ],
)
def test_sides_are_read_off_the_names(root: Path, names: list[str], partners: list[int]) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["categories"][0] |= {"keypoints": names, "skeleton": []}
        for one in content["annotations"]:
            one["keypoints"] = one["keypoints"][:9]

    for split in ("train", "val"):
        change(root, split, edit)
    data = opened(root)
    assert list(data.mirrored) == partners
    assert list(data.skeleton) == []


@pytest.mark.parametrize(
    ("split", "edit", "message"),
    [
        ("val", lambda c: c["categories"][0]["keypoints"].__setitem__(0, "tail"), "names the joints .*'tail'"),
        (
            "train",
            lambda c: c["categories"][0]["skeleton"].append([1, 17]),
            "pairs of keypoints from 1 to 16 are needed",
        ),
        ("train", lambda c: c["images"][1].update(file_name="gone.png"), "image 1: .*gone.png is missing"),
        ("train", lambda c: c["annotations"].clear(), "no annotation has keypoints"),
        ("train", lambda c: [one.update(keypoints=[0] * 48) for one in c["annotations"]], "nobody in them can be used"),
    ],
    ids=["other joints", "no joint", "no image", "no annotation", "nobody"],
)
def test_what_cannot_be_used_is_named(
    root: Path, split: str, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(root, split, edit)
    with pytest.raises(DataError, match=message):
        opened(root)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone does not exist\. Wanted are COCO's JSON files with keypoints"):
        opened(tmp_path / "gone")
    with pytest.raises(ValueError, match="size=100 must be a multiple of 32"):
        OwnPoses(tmp_path, size=100)


def test_an_example_needs_no_data(tmp_path: Path) -> None:
    example = OwnPoses(tmp_path / "gone", size=64).example(2)
    assert example["image"].shape == (2, 3, 64, 64)
    assert np.isfinite(example["image"]).all()
