"""People, animals or things of one's own with named joints, annotated as COCO has keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from datamodules.box_records import Part
from datamodules.coco_annotations import Annotations, mirrored
from datamodules.coco_layout import coco_parts
from datamodules.errors import DataError, OptionError
from datamodules.finding import Listings, leads_outside, shown
from datamodules.mpii import MPII, People
from datamodules.splits import Source, hold_out
from datamodules.transforms.pipeline import Transform
from datamodules.transforms.pose import PIXELS, Person, PersonCrop

WANTED = "Wanted are COCO's JSON files with keypoints (annotations/*keypoints_train*.json, or one JSON file)."
# How much more than a person's box is cut out.
WIDER = 1.25


class OwnPoses(MPII):
    """Images of one's own with people, animals or things that have named joints, one a sample.

    The annotations are COCO's: categories name their ``keypoints``, and perhaps the ``skeleton`` of lines between them;
    an annotation has a ``bbox`` and ``keypoints`` (x, y, visibility of each). All categories have the same joints. JSON
    files whose names, or folders, say ``train``, ``val`` (or ``valid``) are looked for in the folder, in its
    ``annotations`` or beside the images; or one JSON file. Without validation images some are held out from those
    to train on. Crowds, and annotations without a visible joint, are left aside.

    Batch: as ``MPII``, with the joints of the data; ``head_size`` is the longer side of the person's box, which errors
    are measured in. A mirror exchanges joints whose names differ in ``left`` and ``right``.

    Args:
        root: Folder of the data set, or its JSON file.
        batch_size: People of one batch over all processes.
        size: Height and width that people are cut out at, in pixels, a multiple of 32.
        holdout: Validation images taken from training if there are none: a number, or a fraction below 1.
        train_images, val_images: Folders of the images, where they are not found.
        train_annotations, val_annotations: The JSON files, in ``root``, where they are not found.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. Transforms need a ``PersonCrop``; by default people to train on are
            scaled, turned and mirrored a little.

    Raises:
        OptionError: If ``size`` is no multiple of 32.
    """

    mirrored: Sequence[int] = ()
    skeleton: Sequence[tuple[int, int]] = ()

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 32,
        size: int = 256,
        holdout: int | float = 0.2,
        train_images: str | None = None,
        train_annotations: str | None = None,
        val_images: str | None = None,
        val_annotations: str | None = None,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        if size < 32 or size % 32:
            raise OptionError(f"size={size} must be a multiple of 32 pixels.")
        self.size, self.holdout = size, holdout
        super().__init__(
            root=root,
            batch_size=batch_size,
            images="",
            train_annotations="",
            val_annotations="",
            val_heads="",
            num_workers=num_workers,
            **options,
        )
        self.given = {"train": (train_images, train_annotations), "val": (val_images, val_annotations)}
        self.class_names = []
        self._described = ""

    @override
    def default_train_transforms(self) -> list[Transform]:
        return [PersonCrop((self.size, self.size), self._sigma(), scale=0.25, rotation=30.0, flip=0.5)]

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return [PersonCrop((self.size, self.size), self._sigma())]

    def _sigma(self) -> float:
        # As wide on the person as with HRNet's 256 pixels, but no point.
        return max(1.0, 2.0 * self.size / 256)

    @override
    def described(self) -> str:
        self.source("train")
        return self._described

    @override
    def open(self) -> dict[str, Source | None]:
        if not self.root.exists():
            raise DataError(f"{self.root} does not exist. {WANTED}")
        parts = coco_parts(self.root, self.given, "keypoints", WANTED)
        self.class_names = []
        rows: dict[str, list[Row]] = {}
        for split in ("train", "val"):
            if split in parts:
                rows[split] = self._rows(split, parts[split])
        held_out = ""
        if "val" not in rows and self.holdout:
            # By images, for people in one image are seen in one light.
            images = sorted({row.image for row in rows["train"]})
            _, held = hold_out(np.zeros(len(images), np.int64), self.holdout)
            aside, everyone = {images[i] for i in held.tolist()}, rows["train"]
            parts["val"], held_out = parts["train"], ", val held out from train"
            rows = {
                "train": [row for row in everyone if row.image not in aside],
                "val": [row for row in everyone if row.image in aside],
            }
        sources: dict[str, People] = {
            split: _source(parts[split].images, found, split) for split, found in rows.items()
        }
        counts = ", ".join(f"{len(source):,} {split}" for split, source in sources.items())
        self._described = (
            f"{self.root}: COCO, {len(self.class_names)} joints, {len(self.skeleton)} lines between them, {counts} "
            f"people{held_out} (layout: coco)"
        )
        return {split: sources.get(split) for split in ("train", "val", "test")}

    def _rows(self, split: str, part: Part) -> list[Row]:
        """The people of an annotation file, whose names of joints are taken, or must be those of the first file.

        Raises:
            DataError: If it has no keypoints, other ones, or nobody who can be used.
        """
        annotations = Annotations(part.annotations)
        path, count = annotations.path, annotations.num_problems
        self.leave_out(f"{path}: {count} records cannot be used", annotations.problems, count, path)
        if not annotations.has_keypoints:
            raise DataError(f"{path}: no annotation has keypoints. {WANTED}")
        partners = mirrored(annotations)
        (category, *_) = (each for each in annotations.categories if each.get("keypoints"))
        names = list(category["keypoints"])
        if self.class_names not in ([], names):
            raise DataError(f"{path} names the joints {names}, and the training data {self.class_names}.")
        self.class_names, self.mirrored = names, partners.tolist()
        self.skeleton = [(one - 1, other - 1) for one, other in category.get("skeleton", [])]
        there = Listings(part.images)
        rows: list[Row] = []
        missing: list[tuple[str, str]] = []
        ids = annotations.column("ids")
        for image, name in enumerate(annotations.file_names()):
            found = annotations.objects(image)
            seen = (found["keypoints"][..., 2] > 0).any(1)
            if not seen.any():
                continue
            if leads_outside(name) or not there.has(name):
                missing.append((f"image {annotations.image_ids[image]}", f"{shown(part.images / name)} is missing"))
                continue
            rows += [
                Row(name, int(ids[found["rows"][i]]), _person(found["boxes"][i], found["keypoints"][i], partners))
                for i in np.flatnonzero(seen).tolist()
            ]
        self.leave_out(f"{path}: {len(missing)} records cannot be used", missing, file=path)
        if not rows:
            raise DataError(f"{path} lists {len(annotations)} images, and nobody in them can be used.")
        return rows


@dataclass(frozen=True)
class Row:
    """A person of an annotation file.

    Args:
        image: The image's file, in its folder.
        number: The annotation's id.
        person: Who is evaluated.
    """

    image: str
    number: int
    person: Person


def _person(box: np.ndarray, keypoints: np.ndarray, partners: np.ndarray) -> Person:
    """A person of a box x0, y0, x1, y1 and keypoints x, y, visibility, [J,3]."""
    centre, longer = (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max())
    annotated = keypoints[:, 2:] > 0
    joints = np.concatenate([np.where(annotated, keypoints[:, :2], 0), annotated], 1)
    return Person(centre, longer * WIDER / PIXELS, joints, partners, head_size=longer)


def _source(folder: Path, rows: list[Row], split: str) -> People:
    # Who is trained on needs no length to be measured by.
    people = [replace(row.person, head_size=None) if split == "train" else row.person for row in rows]
    return People(folder, [row.image for row in rows], people, [row.number for row in rows])
