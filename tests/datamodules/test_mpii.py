from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from datamodules import MPII, StickFigures
from datamodules.errors import DataError
from datamodules.mpii import JOINT_NAMES, MIRRORED, SKELETON
from datamodules.transforms.pose import PersonCrop
from tests.library.images import image_size

CROP = [PersonCrop((64, 64), sigma=1.0)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six people to train on and four to validate on, in MPII's layout."""
    folder = tmp_path / "mpii"
    folder.mkdir()
    StickFigures(num_train=6, num_val=4).write(folder)
    return folder


def mpii(root: Path, **options: Any) -> MPII:
    transforms = {"train_transforms": CROP, "eval_transforms": CROP}
    return MPII(root, **({"batch_size": 2, "num_workers": 0} | transforms | options))


def change(root: Path, split: str, edit: Callable[[list[Any]], None]) -> None:
    path = root / f"annot/{split}.json"
    records = json.loads(path.read_text())
    edit(records)
    path.write_text(json.dumps(records))


def change_heads(root: Path, **fields: np.ndarray) -> None:
    path = root / "annot/gt_valid.mat"
    known = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    savemat(path, known | fields)


def test_batches_have_what_the_task_needs(root: Path) -> None:
    data = mpii(root)
    training, evaluation = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert set(training) == {"image", "heatmaps", "weight", "index"}
    assert training["image"].shape == (2, 3, 64, 64)
    assert training["heatmaps"].shape == evaluation["heatmaps"].shape == (2, 16, 16, 16)
    assert evaluation["joints"].shape == (2, 16, 3)
    assert evaluation["centre"].shape == (2, 2)
    assert evaluation["scale"].shape == evaluation["head_size"].shape == (2,)
    assert all(value.dtype == torch.float32 for key, value in evaluation.items() if key not in ("image", "index"))
    assert data.has("test") is False
    assert image_size(data) == (3, 64, 64)


def test_coordinates_are_the_published_ones(root: Path) -> None:
    def edit(records: list[Any]) -> None:
        records[0] |= {"center": [51.0, 41.0], "scale": 0.4}
        records[0]["joints"][3], records[0]["joints_vis"][7] = [11.0, 12.0], 0

    change(root, "train", edit)
    person = mpii(root).source("train").load(0)["person"]
    np.testing.assert_allclose(person.centre, [50, 40 + 15 * 0.4])
    assert person.scale == pytest.approx(0.5)
    assert person.joints[3].tolist() == [10, 11, 1]
    assert person.joints[:, 2].sum() == 15


def test_evaluation_is_by_the_matlab_file(root: Path) -> None:
    boxes, missing = np.zeros((2, 2, 4)), np.zeros((16, 4))
    boxes[1] = [[30], [40]]
    missing[5, 2] = 1
    change_heads(root, headboxes_src=boxes, jnt_missing=missing, pos_gt_src=np.full((16, 2, 4), 21.0))
    data = mpii(root)
    person = data.source("val").load(2)["person"]
    assert person.head_size == pytest.approx(0.6 * 50)
    assert person.joints[4].tolist() == [20, 20, 1]
    assert person.joints[5].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda records: records[1].update(image="gone.jpg"), r"person 1: .*gone\.jpg is missing"),
        (lambda records: records[1].pop("image"), "person 1: the record names no image"),
        (lambda records: records[1].pop("center"), "center is missing or not 2 finite numbers"),
        (lambda records: records[1].update(scale=0), "scale=0 must be above 0"),
        (lambda records: records[1].update(scale=[1, 2]), "scale is missing or not one finite numbers"),
        (lambda records: records[1]["joints"].pop(), "joints is missing or not 16x2 finite numbers"),
        (lambda records: records[1]["joints"].append("x"), "joints is missing or not 16x2 finite numbers"),
        (lambda records: records[1].update(scale="1"), "scale holds something else than numbers"),
        (lambda records: records[1].update(center=[10**400, 1]), "center holds something else than numbers"),
        (lambda records: records[1].update(center=[1e300, 1]), "center is missing or not 2 finite numbers"),
        (lambda records: records[1].update(scale=None), "scale holds something else than numbers"),
        (lambda records: records[1].update(image="a\nb.jpg"), r"person 1: .*a\\nb.jpg is missing"),
        (lambda records: records.__setitem__(1, [[[]]]), "person 1: the record names no image"),
        (lambda records: records[1]["joints"].__setitem__(0, [1, float("nan")]), "joints is missing or not 16x2"),
    ],
    ids=[
        "no file",
        "no image",
        "no centre",
        "no size",
        "sizes",
        "15 joints",
        "text",
        "nan",
        "text size",
        "huge",
        "far",
        "null",
        "line end",
        "list",
    ],
)
def test_bad_records_are_named_or_left_out(root: Path, edit: Callable[[list[Any]], None], message: str) -> None:
    change(root, "train", edit)
    with pytest.raises(
        DataError, match=rf"train\.json: 1 records cannot be used:\n(?s:.*){message}(?s:.*)on_bad_sample"
    ):
        mpii(root).setup("fit")
    data = mpii(root, on_bad_sample="skip")
    with pytest.warns(UserWarning, match="are left out"):
        data.setup("fit")
    assert len(data.source("train")) == 5
    assert data.sample_name("train", 1).endswith("train_00002.jpg (person 2)")
    assert len(data.bad_samples) == 1
    with pytest.raises(DataError, match="more than max_bad_samples=0"):
        mpii(root, on_bad_sample="skip", max_bad_samples=0).setup("fit")


def test_people_without_a_head_box_are_named_or_left_out(root: Path) -> None:
    boxes = np.zeros((2, 2, 4))
    boxes[1, :, 1:] = 10
    change_heads(root, headboxes_src=boxes)
    with pytest.raises(DataError, match=r"valid\.json: 1 records (?s:.*)person 0: there is no head box"):
        mpii(root).setup("fit")
    data = mpii(root, on_bad_sample="skip")
    with pytest.warns(UserWarning, match="no head box"):
        data.setup("fit")
    # Who is left keeps its own head box and its number.
    assert data.people("val").numbers == [1, 2, 3]
    assert data.source("val").load(0)["person"].head_size == pytest.approx(0.6 * 10 * 2**0.5)


def test_files_that_do_not_fit_are_one_error(root: Path) -> None:
    change(root, "valid", lambda records: records.pop())
    with pytest.raises(DataError, match=r"lists 3 people with 16 joints\. The two files must be of one release"):
        mpii(root).setup("fit")
    (root / "annot/gt_valid.mat").write_bytes(b"no matlab")
    with pytest.raises(DataError, match=r"gt_valid\.mat is no MATLAB file"):
        mpii(root).setup("fit")
    (root / "annot/gt_valid.mat").unlink()
    with pytest.raises(DataError, match=r"gt_valid\.mat is missing: PCKh is measured in the sizes of heads"):
        mpii(root).setup("fit")
    (root / "annot/train.json").write_text("{")
    with pytest.raises(DataError, match=r"train\.json must hold a JSON list of people"):
        mpii(root).setup("fit")
    (root / "annot/train.json").write_text("{}")
    with pytest.raises(DataError, match="must hold a JSON list of people"):
        mpii(root).setup("fit")
    with pytest.raises(DataError, match=r"train\.json is missing\..*name another file by train_annotations"):
        mpii(root.parent).setup("fit")


def test_a_byte_order_mark_is_read_and_lists_without_end_are_one_error(root: Path) -> None:
    path = root / "annot/train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    data = mpii(root)
    data.setup("fit")
    assert len(data.source("train")) == 6
    path.write_text('[{"joints": ' + "[" * 100_000)
    with pytest.raises(DataError, match=r"train\.json holds lists within lists without end \(near character 1\)"):
        mpii(root).setup("fit")


def test_a_joint_outside_obeys_on_bad_sample(root: Path) -> None:
    change(root, "train", lambda records: records[1]["joints"].__setitem__(0, [500, 20]))
    with pytest.raises(DataError, match=r"train_00001\.jpg \(person 1\) (?s:.*)joint 0 is annotated at \(499, 19\)"):
        list(mpii(root).train_dataloader())
    data = mpii(root, on_bad_sample="skip")
    with pytest.warns(UserWarning, match="joint 0"):
        batches = list(data.train_dataloader())
    assert sum(len(batch["index"]) for batch in batches) >= 6
    assert 1 not in torch.cat([batch["index"] for batch in batches])


def test_figures_are_seen_from_the_front_and_whole() -> None:
    data = StickFigures(num_train=40, num_val=2)
    data.setup("fit")
    people = data.people("train")
    for index in range(40):
        sample = people.load(index)
        joints, image = sample["person"].joints[:, :2], sample["image"].decode()
        assert joints.min() > 0
        assert joints.max() < image.shape[0] - 1
        assert joints[12, 0] < joints[7, 0] < joints[13, 0]
        columns, rows = np.rint(joints).astype(int).T
        assert image[rows, columns].mean(1).min() > 90
        left, top, right, bottom = people.window(index)
        assert left <= joints[:, 0].min() <= joints[:, 0].max() <= right
        assert top <= joints[:, 1].min() <= joints[:, 1].max() <= bottom
    evaluated = next(iter(data.val_dataloader()))
    assert (evaluated["weight"] == 1).all()
    assert ((evaluated["head_size"] > 6) & (evaluated["head_size"] < 14)).all()


def test_mirror_and_bones_fit_the_names() -> None:
    for joint, other in enumerate(MIRRORED):
        swapped = JOINT_NAMES[joint].replace("left", "?").replace("right", "left").replace("?", "right")
        assert JOINT_NAMES[other] == swapped
    mirrored = {frozenset(MIRRORED[joint] for joint in bone) for bone in SKELETON}
    assert mirrored == {frozenset(bone) for bone in SKELETON}
    assert {joint for bone in SKELETON for joint in bone} == set(range(16))


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="num_train=0"):
        StickFigures(num_train=0)
    with pytest.raises(ValueError, match="PersonCrop"):
        MPII("", train_transforms=[])
