"""MPII Human Pose: single people in images, with 16 joints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from typing_extensions import override

from datamodules.base import DataModule, Split
from datamodules.decoding import MAX_PIXELS, Encoded
from datamodules.errors import DataError
from datamodules.finding import shown
from datamodules.json_records import listed
from datamodules.looking import Counts, Marks
from datamodules.splits import Source
from datamodules.transforms.pipeline import Transform
from datamodules.transforms.pose import (
    PIXELS,
    Person,
    PosePipeline,
    evaluate_person,
    joints_of,
    mpii_augmentation,
    whole_image,
)

JOINT_NAMES = (
    *("right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle"),
    *("pelvis", "thorax", "upper neck", "head top"),
    *("right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist"),
)
# Joint that takes the place of each one in a mirror.
MIRRORED = (5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 15, 14, 13, 12, 11, 10)
_MIRRORED = np.array(MIRRORED)
# Joints that a line connects in pictures.
SKELETON = (
    *((0, 1), (1, 2), (2, 6), (5, 4), (4, 3), (3, 6), (6, 7), (7, 8), (8, 9)),
    *((10, 11), (11, 12), (12, 7), (15, 14), (14, 13), (13, 7)),
)
# The length that PCKh measures errors in, as a share of a head box's diagonal.
HEAD_SHARE = 0.6
# The published code looks lower than the annotated centre, by so many pixels a unit of scale, and wider.
LOWER, WIDER = 15.0, 1.25


class MPII(DataModule):
    """MPII's people, one a sample, or any data set in its layout.

    The annotations are those that HRNet's code distributes: ``annot/train.json`` and ``annot/valid.json``, lists of
    ``image`` (a file name), ``center`` (x, y), ``scale`` (the person's height in units of 200 pixels), ``joints``
    (16 times x, y) and ``joints_vis`` (16 times 1 or 0), and ``annot/gt_valid.mat`` with the joints and head boxes that
    the people of ``valid.json`` are evaluated with, in the same order. All coordinates count from 1.

    Batch: ``image`` [B,3,H,W], ``heatmaps`` float32 [B,16,H/4,W/4], ``weight`` float32 [B,16] (0 for joints without a
    target), ``index`` int64 [B]; in validation also ``centre`` float32 [B,2] and ``scale`` float32 [B] of the crop,
    ``joints`` float32 [B,16,3] (x, y in pixels of the image, from 0, and 1 where annotated) and ``head_size`` float32
    [B] (0.6 times the head box's diagonal). Prediction batches have ``image``, ``centre``, ``scale`` and ``index``: an
    image is one person. The test split has no published joints, so there is none here.

    ``on_bad_sample: skip`` leaves out people whose records cannot be used and those whose image is missing; with
    ``error`` the first of them are named.

    Args:
        root: Folder of the data set.
        batch_size: People of one batch over all processes.
        images: Folder of the images, in ``root``.
        train_annotations: JSON file of the people to train on, in ``root``.
        val_annotations: JSON file of the people to validate on.
        val_heads: MATLAB file of their head boxes.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. Transforms need a ``PersonCrop``; by default they are HRNet's for
            256x256 pixels.

    Attributes:
        class_names: Names of the joints.
        mirrored: Joint that takes the place of each one in a mirror.
        skeleton: Pairs of joints that a line connects.
    """

    pipeline = PosePipeline
    mirrored: Sequence[int] = MIRRORED
    skeleton: Sequence[tuple[int, int]] = SKELETON

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 32,
        images: str = "images",
        train_annotations: str = "annot/train.json",
        val_annotations: str = "annot/valid.json",
        val_heads: str = "annot/gt_valid.mat",
        num_workers: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, num_workers=num_workers, **options)
        # Transforms without a crop are refused here rather than when the first batch is loaded.
        for transforms in (self.train_transforms, self.eval_transforms):
            PosePipeline(transforms)
        self.root, self.images, self.val_heads = Path(root), images, val_heads
        self.files = {"train": train_annotations, "val": val_annotations}
        self.class_names = list(JOINT_NAMES)

    @override
    def default_train_transforms(self) -> list[Transform]:
        return mpii_augmentation()

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return evaluate_person()

    @override
    def example_sample(self, image: np.ndarray) -> dict[str, Any]:
        person = whole_image(image.shape[:2])
        number = len(self.class_names)
        joints = np.column_stack([np.tile(person.centre, (number, 1)), np.ones(number)])
        person = replace(
            person, joints=joints, mirrored=np.array(self.mirrored), head_size=HEAD_SHARE * PIXELS * person.scale
        )
        return {"image": image, "person": person}

    @override
    def open(self) -> dict[str, Source | None]:
        return {"train": self._people("train"), "val": self._people("val"), "test": None}

    @override
    def class_counts(self, split: str) -> Counts | None:
        people = self.people(split).people  # type: ignore[arg-type]
        annotated = np.array([person.joints[:, 2] > 0 for person in people if person.joints is not None])
        return Counts(annotated.sum(0).astype(np.int64))

    @override
    def marks(self, sample: dict[str, Any]) -> Marks:
        if "person" in sample:
            joints = sample["person"].joints
        else:
            joints = joints_of(np.asarray(sample["heatmaps"]), np.asarray(sample["weight"]))
        return Marks(joints=None if joints is None else joints[None], bones=self.skeleton)

    def people(self, split: Split) -> People:
        """The people of a split.

        Raises:
            DataError: If the split has no annotations.
        """
        source = self.source(split)
        if not isinstance(source, People):
            raise DataError(f"The {split} split has no annotated people.")
        return source

    def _people(self, split: str) -> People:
        path, folder = self.root / self.files[split], self.root / self.images
        records = _records(path, split)
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; it should hold MPII's images. Name it by images, in {self.root}.")
        # One listing instead of a look at each of 25,000 files.
        there = {file.name for file in folder.iterdir()}
        people: list[Person] = []
        names: list[str] = []
        numbers: list[int] = []
        problems: list[tuple[str, str]] = []
        truth = _heads(self.root / self.val_heads, path, len(records)) if split == "val" else None
        for number, record in enumerate(records):
            try:
                person = _person(record)
                if record["image"] not in there:
                    raise DataError(f"{shown(folder / record['image'])} is missing")
                if truth is not None:
                    person = _evaluated(person, *(each[number] for each in truth))
            except DataError as problem:
                problems.append((f"person {number}", str(problem)))
                continue
            people.append(person)
            names.append(record["image"])
            numbers.append(number)
        self.leave_out(f"{path}: {len(problems)} records cannot be used", problems, file=path)
        if not people:
            raise DataError(f"{path} lists {len(records)} people, and none can be used.")
        return People(folder, names, people, numbers)


class People:
    """The people of one split.

    Args:
        folder: Folder of the image files.
        images: File name of each person's image.
        people: Where they are.
        numbers: Position of each in the annotation file.
    """

    def __init__(self, folder: Path, images: list[str], people: list[Person], numbers: list[int]) -> None:
        self.folder, self.images, self.people, self.numbers = folder, images, people, numbers

    def __len__(self) -> int:
        return len(self.people)

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``image`` (encoded) and ``person``."""
        return {"image": Encoded(self.folder / self.images[index]), "person": self.people[index]}

    def window(self, index: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the square around a person, in pixels."""
        person = self.people[index]
        (x, y), half = person.centre.tolist(), PIXELS * person.scale / 2
        return x - half, y - half, x + half, y + half

    def name(self, index: int) -> str:
        """The file's path, and which person of the annotation file is meant."""
        return f"{self.folder / self.images[index]} (person {self.numbers[index]})"


def _records(path: Path, split: str) -> list[Any]:
    """The records of an annotation file."""
    if not path.is_file():
        raise DataError(
            f"{path} is missing. MPII's images are at http://human-pose.mpi-inf.mpg.de, its annotations as "
            "annot/train.json, annot/valid.json and annot/gt_valid.mat with HRNet's code "
            f"(github.com/leoxiaobin/deep-high-resolution-net.pytorch); name another file by {split}_annotations."
        )
    records = list(listed(path, "people"))
    if not records:
        raise DataError(f"{path} lists no people. Restore the file.")
    return records


def _person(record: Any) -> Person:
    """A person as a record describes it.

    Raises:
        DataError: If the record cannot be used.
    """
    if not isinstance(record, dict) or not isinstance(name := record.get("image"), str):
        raise DataError("the record names no image")
    fields = {"center": (2,), "scale": (), "joints": (len(JOINT_NAMES), 2), "joints_vis": (len(JOINT_NAMES),)}
    values = {}
    for field, shape in fields.items():
        try:
            found = np.asarray(record.get(field, np.nan))
        except ValueError:
            found = np.empty(0)  # lists of different lengths
        if found.dtype.kind not in "biuf":
            raise DataError(f"{shown(name)}: {field} holds something else than numbers")
        if found.shape != shape or not (np.abs(found.astype(np.float64)) < MAX_PIXELS).all():
            wanted = "x".join(map(str, shape)) or "one"
            raise DataError(f"{shown(name)}: {field} is missing or not {wanted} finite numbers below {MAX_PIXELS:,}")
        values[field] = found.astype(np.float64)
    scale = float(values["scale"])
    if scale <= 0:
        raise DataError(f"{shown(name)}: scale={scale:g} must be above 0")
    centre = values["center"] + [0, LOWER * scale] - 1
    joints = np.column_stack([values["joints"] - 1, values["joints_vis"] > 0])
    return Person(centre, scale * WIDER, joints, _MIRRORED)


def _heads(path: Path, annotations: Path, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints [n,16,2], which of them are annotated [n,16] and head boxes [n,2,2] that people are evaluated with."""
    if not path.is_file():
        raise DataError(
            f"{path} is missing: PCKh is measured in the sizes of heads. It comes with HRNet's annotations; name "
            "another file by val_heads."
        )
    try:
        content = loadmat(path)
        joints = np.asarray(content["pos_gt_src"], np.float64).transpose(2, 0, 1)
        missing = np.asarray(content["jnt_missing"], np.float64).T
        boxes = np.asarray(content["headboxes_src"], np.float64).transpose(2, 0, 1)
    except Exception as problem:
        # SciPy raises whatever a damaged file makes it stumble over.
        raise DataError(
            f"{path} is no MATLAB file (before version 7.3) with pos_gt_src, jnt_missing and headboxes_src: "
            f"{type(problem).__name__}: {problem}. Restore it, or name another by val_heads."
        ) from problem
    shapes = (joints.shape, missing.shape, boxes.shape)
    if shapes != ((number, len(JOINT_NAMES), 2), (number, len(JOINT_NAMES)), (number, 2, 2)):
        raise DataError(
            f"{path} holds joints {shapes[0]}, missing joints {shapes[1]} and head boxes {shapes[2]}, but "
            f"{annotations} lists {number} people with {len(JOINT_NAMES)} joints. The two files must be of one release."
        )
    return joints, missing < 1, boxes


def _evaluated(person: Person, joints: np.ndarray, annotated: np.ndarray, box: np.ndarray) -> Person:
    """A person with what it is evaluated with.

    Raises:
        DataError: If the head box is empty or a joint is nowhere.
    """
    diagonal = float(np.linalg.norm(box[1] - box[0]))
    if not (math.isfinite(diagonal) and diagonal > 0):
        raise DataError(f"there is no head box, but corners {box.tolist()}")
    if not np.isfinite(joints[annotated]).all():
        raise DataError("a joint is annotated without a place")
    truth = np.column_stack([np.where(annotated[:, None], joints - 1, 0), annotated])
    return replace(person, joints=truth, head_size=HEAD_SHARE * diagonal)
