"""One's own images with boxes or outlines of objects, in whichever of the usual layouts they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from datamodules.box_records import Found, Part, as_coco
from datamodules.coco import Coco, CocoImages
from datamodules.coco_layout import coco_parts, find_coco
from datamodules.errors import DataError, OptionError
from datamodules.splits import Source, hold_out
from datamodules.transforms import Transform
from datamodules.transforms.recipes import evaluate_shortest_edge, jittered_scenes
from datamodules.voc import find_voc
from datamodules.yolo import find_yolo

Layout = Literal["auto", "coco", "yolo", "voc"]
NAMES = {"coco": "COCO", "yolo": "YOLO", "voc": "Pascal VOC"}
WANTED = (
    "Wanted are COCO's JSON files (annotations/*train*.json), YOLO's text files (data.yaml, or images/ and labels/) or "
    "Pascal VOC's XML files (Annotations/ and JPEGImages/)."
)


class OwnBoxes(Coco):
    """Images of one's own with objects, annotated as COCO, YOLO or Pascal VOC have it.

    - ``coco``: JSON files whose names, or folders, say ``train``, ``val`` (or ``valid``) and ``test``, in the folder,
      in its ``annotations`` or beside the images; or one JSON file.
    - ``yolo``: a YAML file with ``train`` and ``names``, or folders ``images`` and ``labels``; a text file for each
      image with ``class x y width height``, or ``class x y x y x y ...`` of an outline, as shares of the image. An
      image without a text file has no objects.
    - ``voc``: an XML file for each image, in ``Annotations`` with ``JPEGImages`` and perhaps ``ImageSets/Main``, or
      beside it in ``train``, ``valid`` and ``test``. Boxes count pixels from 1; objects that are difficult are neither
      learnt nor counted against a detector.

    Without validation images some are held out from those to train on. Without test images there is no test split.

    Batch: see ``Coco``; labels are from 0, in the order of ``class_names``.

    Args:
        root: Folder of the data set, or its YAML or JSON file.
        batch_size: Images of one batch over all processes.
        layout: ``auto`` looks which one it is.
        size: Longer side of images to evaluate, in pixels; those to train on are about as large.
        holdout: Validation images taken from training if there are none: a number, or a fraction below 1.
        masks: Whether training targets have masks, of outlines or run-length codes.
        train_images, val_images, test_images: Folders of the images of COCO's JSON files, where they are not found.
        train_annotations, val_annotations, test_annotations: These JSON files, in ``root``, where they are not found.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. By default images to train on are flipped, resized at random,
            cropped to ``size`` and changed a little in their colours.

    Raises:
        OptionError: If ``size`` is less than 32.
    """

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 8,
        layout: Layout = "auto",
        size: int = 640,
        holdout: int | float = 0.2,
        masks: bool = False,
        train_images: str | None = None,
        train_annotations: str | None = None,
        val_images: str | None = None,
        val_annotations: str | None = None,
        test_images: str | None = None,
        test_annotations: str | None = None,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        if size < 32:
            raise OptionError(f"size={size} must be at least 32 pixels.")
        self.size = size
        super().__init__(
            root=root,
            batch_size=batch_size,
            labels="contiguous",
            masks=masks,
            keep_empty=True,
            group_by_aspect=False,
            limit=None,
            train_images="",
            train_annotations="",
            val_images="",
            val_annotations="",
            num_workers=num_workers,
            **options,
        )
        self.layout, self.holdout = layout, holdout
        self.given = {
            "train": (train_images, train_annotations),
            "val": (val_images, val_annotations),
            "test": (test_images, test_annotations),
        }
        self._parts: dict[str, Part] = {}
        self._described = ""

    @override
    def default_train_transforms(self) -> list[Transform]:
        return jittered_scenes(self.size)

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return evaluate_shortest_edge(self.size, self.size)

    @override
    def described(self) -> str:
        self.source("train")
        return self._described

    @override
    def open(self) -> dict[str, Source | None]:
        if not self.root.exists():
            raise DataError(f"{self.root} does not exist. {WANTED}")
        layout, place = self._find()
        self.files = {split: (str(part.images), str(part.annotations)) for split, part in self._parts.items()}
        sources = super().open()
        held_out = ""
        train = sources["train"]
        if sources["val"] is None and isinstance(train, CocoImages):
            kept, held = hold_out(np.zeros(len(train), np.int64), self.holdout)
            if len(held):
                sources |= {"train": train.subset(kept, self.masks), "val": train.subset(held, masks=False)}
                held_out = ", val held out from train"
        counts = ", ".join(f"{len(source):,} {split}" for split, source in sources.items() if source is not None)
        self._described = (
            f"{place}: {NAMES[layout]}, {self.num_classes} classes, {counts} images{held_out} (layout: {layout})"
        )
        return sources

    def _find(self) -> tuple[str, Path]:
        """Looks where the splits are; the layout, and the file or folder that has been found."""
        if self.layout == "coco" or any(name for names in self.given.values() for name in names):
            self._parts = coco_parts(self.root, self.given, "instances", WANTED)
            return "coco", self.root
        finders: dict[str, Callable[[], Found | None]] = {
            "yolo": lambda: find_yolo(self.root, self.layout == "yolo"),
            "voc": lambda: find_voc(self.root),
        }
        if self.layout != "auto":
            found = finders[self.layout]()
            if found is None:
                raise DataError(f"{self.root} has no data in the layout {self.layout}. {WANTED}")
            return self._take(found)
        if parts := find_coco(self.root):
            self._parts = parts
            return "coco", self.root
        for finder in finders.values():
            if (found := finder()) is not None:
                return self._take(found)
        raise DataError(f"{self.root} holds no annotations. {WANTED}")

    def _take(self, found: Found) -> tuple[str, Path]:
        self._parts, problems = as_coco(found, self.masks)
        self.leave_out(f"{found.place}: {len(problems)} records cannot be used", problems)
        return found.layout, found.place

    @override
    def _annotation_file(self, split: str) -> Path:
        return self._parts[split].annotations

    @override
    def _image_folder(self, split: str) -> Path:
        folder = self._parts[split].images
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder. Name it by {split}_images.")
        return folder
