"""Scenes of handwritten digits, written once to disk in the layout of Cityscapes and read like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import albumentations as A
import numpy as np
from PIL import Image
from typing_extensions import override

from datamodules.cache import write_once
from datamodules.canvases import Canvas, CanvasPainter
from datamodules.cityscapes import IDS_SUFFIX, IMAGE_SUFFIX, StreetScenes
from datamodules.errors import OptionError
from datamodules.label_maps import LabelMap, voc_colours
from datamodules.splits import Source
from datamodules.transforms import Transform
from datamodules.transforms.segmentation import PaddedCrop

# Other hands wrote the digits of each split.
DIGITS = {"train": range(0, 1297), "val": range(1297, 1547), "test": range(1547, 1797)}
# The data set is part of the task: it must not move with the run's seed.
CANVAS_SEED = 20260102
LAYOUT = "digit-streets-1"
CITY = "digits"


class DigitStreets(StreetScenes):
    """Noisy canvases with coloured digits, every pixel labelled: background and the classes 0 to 9, without a download.

    Batch: as ``Segmentation``. The data set is written to the cache folder on first use.

    Args:
        eval_batch_size: Images of one validation, test or prediction batch on each process.
        size: Side of a canvas in pixels.
        objects: Fewest and most digits of a canvas.
        digit_size: Smallest and largest side of a digit in pixels.
        num_train: Training canvases.
        num_val: Validation canvases.
        num_test: Test canvases.
        class_weighting: ``frequency``, or None for no weights.
        num_workers: Loader processes for each process.
        options: Further options of ``Segmentation``. By default images to train on are shifted by up to 4 pixels.

    Raises:
        OptionError: If there are no canvases, or digits do not fit on them.
    """

    label_map = LabelMap(
        names=("background", *map(str, range(10))),
        palette=voc_colours(11),
        # Ids and train ids differ, as they do in Cityscapes.
        ids=tuple(range(1, 12)),
        void_ids=(0,),
    )

    def __init__(
        self,
        eval_batch_size: int = 16,
        size: int = 64,
        objects: tuple[int, int] = (1, 3),
        digit_size: tuple[int, int] = (14, 29),
        num_train: int = 1000,
        num_val: int = 100,
        num_test: int = 200,
        class_weighting: Literal["frequency"] | None = None,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        if min(num_train, num_val, num_test) < 1:
            raise OptionError(f"num_train={num_train}, num_val={num_val} and num_test={num_test} must be at least 1.")
        self.counts = {"train": num_train, "val": num_val, "test": num_test}
        self.painters = {split: CanvasPainter(digits, size, objects, digit_size) for split, digits in DIGITS.items()}
        self.typical_size = (size, size)
        super().__init__(
            root="",
            eval_batch_size=eval_batch_size,
            class_weighting=class_weighting,
            num_workers=num_workers,
            **options,
        )

    @override
    def default_train_transforms(self) -> list[Transform]:
        """A shift: mirrored or rescaled digits would be other digits."""
        height, width = self.typical_size
        return [A.Pad(4, fill_mask=self.ignore_index), PaddedCrop(height, width)]

    @override
    def open(self) -> dict[str, Source | None]:
        painter = self.painters["train"]
        key = (LAYOUT, self.counts, painter.size, painter.objects, painter.digit_size)
        self.root = write_once("digit-streets", repr(key), self.write, source="The digit streets")
        return super().open()

    def write(self, folder: Path) -> None:
        """Writes the data set in Cityscapes' layout."""
        for number, (split, painter) in enumerate(self.painters.items()):
            images, masks = (folder / kind / split / CITY for kind in ("leftImg8bit", "gtFine"))
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for frame in range(self.counts[split]):
                canvas = painter.paint(np.random.Generator(np.random.PCG64([CANVAS_SEED, number, frame])))
                name = f"{CITY}_000000_{frame:06d}"
                Image.fromarray(canvas.image).save(images / f"{name}{IMAGE_SUFFIX}.png")
                labels = self.label_map.file_ids(_train_ids(canvas))
                Image.fromarray(labels).save(masks / f"{name}{IDS_SUFFIX}.png")


def _train_ids(canvas: Canvas) -> np.ndarray:
    """Class of every pixel, uint8 [H,W]; 0 is the background."""
    labels = np.zeros(canvas.image.shape[:2], np.uint8)
    for label, mask in zip(canvas.labels, canvas.masks, strict=True):
        labels[mask] = label + 1
    return labels
