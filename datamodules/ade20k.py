"""ADE20K as the scene parsing benchmark distributes it."""

from __future__ import annotations

from dataclasses import replace

from typing_extensions import override

from datamodules.base import Split
from datamodules.errors import DataError
from datamodules.label_maps import LabelMap, voc_colours
from datamodules.segmentation import LabelledPixels
from datamodules.splits import Source
from datamodules.transforms import Transform
from datamodules.transforms.segmentation import mmseg_augmentation

NUM_CLASSES = 150
NAMES_FILE = "objectInfo150.txt"
FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}


class ADE20K(LabelledPixels):
    """ADE20K (ADEChallengeData2016): 20,210 training and 2,000 validation images of many sizes, 150 classes.

    ``root`` holds ``images/{training,validation}/*.jpg`` and ``annotations/{training,validation}/*.png``, as
    ADEChallengeData2016.zip of http://sceneparsing.csail.mit.edu unpacks. Value 0 of its label files, "other", is void
    and class n is written as n + 1. Classes are named by ``root/objectInfo150.txt`` where it exists.

    See ``LabelledPixels`` for batches and arguments.
    """

    label_map = LabelMap(
        names=tuple(f"class {number}" for number in range(1, NUM_CLASSES + 1)),
        palette=voc_colours(NUM_CLASSES + 1)[1:],
        ids=tuple(range(1, NUM_CLASSES + 1)),
        void_ids=(0,),
    )

    @override
    def default_train_transforms(self) -> list[Transform]:
        """MMSegmentation's: crops of 512x512 of images resized into 2048x512 times 0.5 to 2."""
        return mmseg_augmentation(512, long_side=2048, short_side=512)

    @override
    def open(self) -> dict[str, Source | None]:
        missing = [
            str(self.root / kind / folder)
            for kind in ("images", "annotations")
            for folder in FOLDERS.values()
            if not (self.root / kind / folder).is_dir()
        ]
        if missing:
            raise DataError(
                f"ADE20K is not complete: {', '.join(missing)} missing. Get ADEChallengeData2016.zip from "
                "http://sceneparsing.csail.mit.edu and give the folder that it unpacks to as root."
            )
        self.set_classes(replace(self.label_map, names=self._names()))
        train, val = (
            self.pairs(split, self.root / "images" / folder, self.root / "annotations" / folder)
            for split, folder in FOLDERS.items()
        )
        return {"train": train, "val": val, "test": None}

    def _names(self) -> tuple[str, ...]:
        file = self.root / NAMES_FILE
        if not file.is_file():
            return self.label_map.names
        # A line is "1<tab>0.1576<tab>11664<tab>1172<tab>1<tab>wall", after a line of headings.
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line[:1].isdigit()]
        if len(lines) != NUM_CLASSES:
            raise DataError(f"{file} names {len(lines)} classes, not {NUM_CLASSES}. Get it again, or remove it.")
        return tuple(line[-1].split(",")[0].strip() for line in lines)
