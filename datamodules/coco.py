"""COCO: images in folders, boxes and masks and keypoints in one JSON file a split."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from typing_extensions import override

from datamodules.base import DataModule, Split
from datamodules.coco_annotations import Annotations, mirrored
from datamodules.decoding import Encoded
from datamodules.errors import DataError, OptionError
from datamodules.finding import Listings, leads_outside, shown
from datamodules.looking import Counts, Marks
from datamodules.remarks import remarks_on_classes
from datamodules.skipping import MAX_LISTED
from datamodules.splits import Source
from datamodules.transforms import Transform
from datamodules.transforms.packed_masks import pack, unpack
from datamodules.transforms.recipes import detr_augmentation, evaluate_shortest_edge
from datamodules.transforms.scene_pipeline import ScenePipeline

# More than any network has: an id beyond is a mistake that would make a class of each number below it.
MAX_LABELS = 100_000


class Coco(DataModule):
    """COCO detection, instance segmentation and keypoints, or any data set in that layout.

    Batch: ``image``, a list of tensors [3,h,w] of different sizes; ``target``, a list of dicts; ``index`` int64 [B]. A
    target has ``boxes`` float32 [n,4] (x0, y0, x1, y1 in pixels of the input image), ``labels`` int64 [n], ``image_id``
    (int) and ``original_size`` (height, width of the file); training targets also ``masks`` bool [n,h,w] with ``masks:
    true``, and ``keypoints`` float32 [n,K,3] (x, y, visibility) where the annotations have them. Crowds are in no
    target, but in ``ground_truth``. Prediction targets have ``original_size`` only.

    ``on_bad_sample: skip`` leaves out records that cannot be used (as an empty box, of which COCO has some, or an image
    file that is missing or outside of the folder), from targets and ground truth alike; with ``error`` the first of
    them are named.

    Args:
        root: Folder of the data set.
        batch_size: Images of one batch over all processes.
        labels: ``contiguous`` numbers the categories from 0 by ascending id; ``coco`` takes the category id as label,
            with as many classes as the largest id and one, as the DETR family does.
        masks: Whether training targets have masks.
        keep_empty: Whether training images without objects are kept.
        group_by_aspect: Whether the images of a training batch are all upright or all not. It bounds the padding: a
            batch is never larger than its size times the largest image of the transforms.
        limit: Only the first so many images of each split, for a trial; None for all.
        train_images: Folder of training images, in ``root`` or ``root/images``.
        train_annotations: JSON file of training images, in ``root``.
        val_images: Folder of validation images.
        val_annotations: JSON file of validation images.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. By default images to train on are augmented as for the DETR family,
            and others resized to a shorter side of 800, or less where the longer side would exceed 1333.

    Attributes:
        category_ids: COCO category id of each label.

    Raises:
        OptionError: If ``labels`` is neither, or ``limit`` leaves no image.
    """

    pipeline = ScenePipeline

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 16,
        labels: Literal["contiguous", "coco"] = "contiguous",
        masks: bool = True,
        keep_empty: bool = True,
        group_by_aspect: bool = False,
        limit: int | None = None,
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str = "val2017",
        val_annotations: str = "annotations/instances_val2017.json",
        num_workers: int = 4,
        **options: Any,
    ) -> None:
        if labels not in ("contiguous", "coco"):
            raise OptionError(f"labels={labels!r} must be 'contiguous' or 'coco'.")
        if limit is not None and limit < 1:
            raise OptionError(f"limit={limit} must be at least 1, or null for all images.")
        super().__init__(batch_size, num_workers=num_workers, **options)
        self.root, self.labels, self.masks = Path(root), labels, masks
        self.keep_empty, self.group_by_aspect, self.limit = keep_empty, group_by_aspect, limit
        self.files = {"train": (train_images, train_annotations), "val": (val_images, val_annotations)}
        self.category_ids: list[int] = []

    @override
    def default_train_transforms(self) -> list[Transform]:
        return detr_augmentation()

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return evaluate_shortest_edge()

    @override
    def example_sample(self, image: np.ndarray) -> dict[str, Any]:
        height, width = image.shape[:2]
        # One object in the middle.
        boxes = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], np.float32)
        size = {"image_id": 0, "original_size": (height, width)}
        return {"image": image, "target": size | {"boxes": boxes, "labels": np.zeros(1, np.int64)}}

    @staticmethod
    @override
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Lists of images and targets."""
        targets = [dict(sample["target"]) for sample in samples]
        for field in ("boxes", "labels", "keypoints"):
            having = [target for target in targets if field in target]
            for target, view in zip(having, _in_one_storage([target[field] for target in having]), strict=True):
                target[field] = view
        return {
            "image": _planes([sample["image"] for sample in samples]),
            "target": targets,
            "index": torch.tensor([sample["index"] for sample in samples]),
        }

    @override
    def open(self) -> dict[str, Source | None]:
        annotations = {split: Annotations(self._annotation_file(split), self.masks) for split in self.files}
        names = {split: {c["id"]: c["name"] for c in one.categories} for split, one in annotations.items()}
        for split, theirs in names.items():
            if theirs != names["train"]:
                raise DataError(
                    f"{annotations['train'].path} and {annotations[split].path} differ in their categories (ids or "
                    f"names): {sorted(set(names['train'].items()) ^ set(theirs.items()))[:MAX_LISTED]}. They must be "
                    "the same."
                )
        ids = sorted(names["train"])
        if self.labels == "coco" and not 0 <= ids[0] <= ids[-1] < MAX_LABELS:
            raise DataError(
                f"{annotations['train'].path} has category ids from {ids[0]} to {ids[-1]}: labels: coco takes ids as "
                f"labels, from 0 to {MAX_LABELS - 1}. Set labels: contiguous, which numbers the categories."
            )
        self.category_ids = ids if self.labels == "contiguous" else list(range(ids[-1] + 1))
        self.class_names = [names["train"].get(category, f"id {category}") for category in self.category_ids]
        sources: dict[str, Source | None] = {}
        for split, one in annotations.items():
            self._report_records(one)
            sources[split] = self._images(split, one)
        if sources["train"] is None:
            raise DataError(f"{annotations['train'].path} has no images to train on.")
        return {split: sources.get(split) for split in ("train", "val", "test")}

    @override
    def inspect(self) -> list[str]:
        remarks = []
        for split, images in self._sources.items():
            if isinstance(images, CocoImages):
                names = [category["name"] for category in images.annotations.categories]
                remarks += remarks_on_classes(split, images.images_of_categories(), names, "object")
        return remarks

    @override
    def class_counts(self, split: str) -> Counts | None:
        images = self.source(split)
        if not isinstance(images, CocoImages):
            return None
        found = np.zeros(self.num_classes, np.int64)
        categories = [category["id"] for category in images.annotations.categories]
        found[[images.label_of[category] for category in categories]] = images.images_of_categories()
        labels, _ = images.annotated_objects()
        return Counts(found, np.bincount(labels, minlength=self.num_classes), "objects")

    @override
    def marks(self, sample: dict[str, Any]) -> Marks:
        target = sample["target"]
        boxes, masks = np.asarray(target["boxes"], np.float64), target.get("masks")
        if isinstance(masks, np.ndarray):
            masks = unpack(masks, np.arange(len(boxes)))
        joints = target.get("keypoints")
        return Marks(
            boxes=boxes,
            labels=np.asarray(target["labels"]),
            masks=None if masks is None else np.asarray(masks),
            joints=None if joints is None else np.asarray(joints),
        )

    def ground_truth(self, split: Split) -> dict[str, Any]:
        """What to evaluate against, as a COCO dict: ``images``, ``annotations`` (crowds included), ``categories``."""
        images = self._coco(split)
        return images.annotations.ground_truth(images.chosen.numpy(), outlines=self.masks)

    def annotated_objects(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 [n] of all objects of a split but crowds, and boxes float64 [n,4] relative to their images."""
        return self._coco(split).annotated_objects()

    def image_ids(self, split: Split) -> np.ndarray:
        """COCO id of each image of a split, int64 [n]."""
        images = self._coco(split)
        return images.annotations.image_ids[images.chosen.numpy()]

    @override
    def batch_groups(self) -> np.ndarray | None:
        """1 for upright training images, else 0; see ``group_by_aspect``."""
        if not self.group_by_aspect:
            return None
        images = self._coco("train")
        heights, widths = images.annotations.column("heights"), images.annotations.column("widths")
        return (heights > widths)[images.chosen.numpy()].astype(np.int64)

    def _coco(self, split: Split) -> CocoImages:
        images = self.source(split)
        if not isinstance(images, CocoImages):
            raise DataError(f"The {split} split has no annotations.")
        return images

    def _annotation_file(self, split: str) -> Path:
        file = self.root / self.files[split][1]
        if not file.is_file():
            raise DataError(
                f"{file} is missing. COCO has {self.root}/annotations/instances_train2017.json and "
                "instances_val2017.json, with images in train2017 and val2017 (https://cocodataset.org/#download); "
                f"name other files by {split}_annotations and {split}_images."
            )
        return file

    def _image_folder(self, split: str) -> Path:
        name = self.files[split][0]
        folders = [self.root / name, self.root / "images" / name]
        for folder in folders:
            if folder.is_dir():
                return folder
        raise DataError(f"Neither {folders[0]} nor {folders[1]} is a folder. Name it by {split}_images.")

    def _images(self, split: str, annotations: Annotations) -> CocoImages | None:
        """The images of a split; None if there are none."""
        if not len(annotations):
            warnings.warn(f"{annotations.path} has no images: there is no {split} split.", stacklevel=2)
            return None
        folder = self._image_folder(split)
        there = Listings(folder)
        missing, chosen = [], []
        crowds, starts = annotations.column("crowds"), annotations.column("starts")
        objects = np.diff(np.append(0, np.cumsum(~crowds))[starts])
        for image, name in enumerate(annotations.file_names()):
            if leads_outside(name):
                reason = f"its file {shown(name)} is not in {folder}"
                missing.append((f"image {annotations.image_ids[image]}", reason))
                continue
            if not there.has(name):
                missing.append((f"image {annotations.image_ids[image]}", f"{shown(folder / name)} is missing"))
            elif split != "train" or self.keep_empty or objects[image]:
                chosen.append(image)
        self.leave_out(f"{annotations.path}: {len(missing)} records cannot be used", missing, file=annotations.path)
        if not chosen:
            raise DataError(f"{annotations.path} names {len(annotations)} images, and none can be used from {folder}.")
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        used = np.array(chosen[: self.limit])
        return CocoImages(folder, annotations, used, label_of, self.masks and split == "train")

    def _report_records(self, annotations: Annotations) -> None:
        """Reports the records of an annotation file that cannot be used."""
        count = annotations.num_problems
        found = f"{annotations.path}: {count} records cannot be used"
        self.leave_out(found, annotations.problems, count, annotations.path)
        number, first = annotations.listed_again
        if number:
            warnings.warn(
                f"{annotations.path}: {number} images have a file that another image has, too, and are images of their "
                f"own; the first file is {first}.",
                stacklevel=2,
            )
        number, first = annotations.overhanging
        if number:
            warnings.warn(
                f"{annotations.path}: {number} boxes reach more than a pixel over the edge of their image and are cut "
                f"there; the first is {first}.",
                stacklevel=2,
            )
        number, first = annotations.crossing
        if number and self.masks:
            warnings.warn(
                f"{annotations.path}: {number} outlines cross themselves, and are filled as COCO's own tools do it; "
                f"the first is {first}.",
                stacklevel=2,
            )


class CocoImages:
    """Images of one split with their objects.

    Args:
        folder: Folder of the image files.
        annotations: Annotations of the split.
        chosen: Positions in ``annotations`` of the images to use, int64 [n].
        label_of: Label of each category id.
        masks: Whether targets have masks.
    """

    def __init__(
        self, folder: Path, annotations: Annotations, chosen: np.ndarray, label_of: dict[int, int], masks: bool
    ) -> None:
        self.folder, self.annotations, self.label_of, self.masks = folder, annotations, label_of, masks
        # As a tensor, worker processes get it as shared memory.
        self.chosen = torch.from_numpy(chosen)
        self._mirrored = mirrored(annotations) if annotations.has_keypoints else None

    def __len__(self) -> int:
        return len(self.chosen)

    def images_of_categories(self) -> np.ndarray:
        """Images that each category has an object in, crowds aside, by ascending id, int64 [K]."""
        ids = np.array([category["id"] for category in self.annotations.categories])
        single = ~self.annotations.column("crowds")
        image_of = np.repeat(np.arange(len(self.annotations)), np.diff(self.annotations.column("starts")))[single]
        used = np.isin(image_of, self.chosen.numpy())
        places = np.searchsorted(ids, self.annotations.column("categories")[single])
        pairs = np.unique(image_of[used] * len(ids) + places[used])
        return np.bincount(pairs % len(ids), minlength=len(ids))

    def annotated_objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 [n] of all objects but crowds, and boxes float64 [n,4] relative to their images."""
        columns = self.annotations.column
        image_of = np.repeat(np.arange(len(self.annotations)), np.diff(columns("starts")))
        used = ~columns("crowds") & np.isin(image_of, self.chosen.numpy())
        sizes = np.stack([columns("widths"), columns("heights")] * 2, 1)[image_of[used]]
        ids, places = np.unique(columns("categories")[used], return_inverse=True)
        labels = np.array([self.label_of[category] for category in ids.tolist()], np.int64)
        boxes = columns("boxes")[used]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        return labels[places], np.clip(corners / sizes, 0, 1)

    def subset(self, indices: np.ndarray, masks: bool) -> CocoImages:
        """The images at some positions, int64 [n].

        Args:
            masks: Whether targets have masks.
        """
        return CocoImages(self.folder, self.annotations, self.chosen.numpy()[indices], self.label_of, masks)

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``image`` (encoded) and ``target`` as ``ScenePipeline`` takes it."""
        image = int(self.chosen[index])
        found = self.annotations.objects(image)
        height, width = self.annotations.size(image)
        target: dict[str, Any] = {
            "image_id": int(self.annotations.image_ids[image]),
            "original_size": (height, width),
            "boxes": found["boxes"],
            "labels": np.array([self.label_of[category] for category in found["categories"].tolist()], np.int64),
        }
        if self.masks:
            patches = (self.annotations.patch(row, height, width) for row in found["rows"].tolist())
            target["masks"] = pack(patches, len(found["rows"]), height, width)
        if self._mirrored is not None:
            target |= {"keypoints": found["keypoints"], "mirrored": self._mirrored}
        return {"image": Encoded(self.folder / self.annotations.file_name(image)), "target": target}

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.folder / self.annotations.file_name(int(self.chosen[index])))


def _planes(images: list[np.ndarray]) -> list[torch.Tensor]:
    """Images [H,W,3] as tensors [3,H,W]."""
    planes = _views([(image.shape[2], *image.shape[:2]) for image in images], torch.uint8)
    for image, target in zip(images, planes, strict=True):
        cv2.split(image, list(target.numpy()))  # ten times faster than a transposing copy
    return planes


def _in_one_storage(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    views = _views([tuple(tensor.shape) for tensor in tensors], tensors[0].dtype) if tensors else []
    for tensor, view in zip(tensors, views, strict=True):
        view.copy_(tensor)
    return views


def _views(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Empty tensors in one storage: a worker hands each storage over as an open file, of which a process has few."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = torch.empty(sum(sizes), dtype=dtype).split(sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
