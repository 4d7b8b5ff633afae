"""One's own images and label files, in two folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from datamodules.base import Split
from datamodules.errors import DataError, OptionError
from datamodules.label_maps import LabelMap, voc_colours
from datamodules.segmentation import LabelledPixels
from datamodules.splits import Source, hold_out
from datamodules.transforms import Transform
from datamodules.transforms.segmentation import mmseg_augmentation


@dataclass
class MaskClass:
    """A class of one's own data.

    Args:
        name: What it is called.
        value: Its value in label files; by default its position in the list, from 0. 255, which otherwise is void, is
            possible too.
        colour: Its RGB in pictures, and in label files that are colour pictures; by default one of PASCAL VOC's.
    """

    name: str
    value: int | None = None
    colour: tuple[int, int, int] | None = None


class SegmentationFolder(LabelledPixels):
    """Images and label files of the same names: ``images/<split>/<name>.jpg`` and ``masks/<split>/<name>.png``.

    Splits are ``train``, ``val`` and ``test``; without ``val``, validation images are held out from ``train``, and
    without any of these folders, from all images. Label files are pictures of one channel with the classes' values, of
    a palette (whose indices are the values), or of the classes' colours; 255 is void unless a class has that value.
    Before a training they are looked through, and classes without pixels and palettes that contradict the classes are
    named.

    Batch: see ``LabelledPixels``.

    Args:
        root: Folder that holds both folders.
        classes: The classes, in the order of the network's outputs.
        void_values: Values of label files that are no class and not evaluated, besides 255 where no class has it.
        void_colours: The same for label files of colours.
        images: Folder of images.
        masks: Folder of label files.
        mask_suffix: What the names of label files add to those of their images, such as ``_mask``.
        holdout: Validation images taken from training if there is no ``val``: a number, or a fraction below 1.
        crop: Side of the square crop of the default augmentation, MMSegmentation's.
        class_weighting: ``frequency``, or None for no weights.
        options: Further options of ``LabelledPixels``.

    Raises:
        OptionError: If classes are missing or share a value or colour; see also ``LabelledPixels``.
    """

    def __init__(
        self,
        root: Path | str,
        classes: list[MaskClass],
        void_values: tuple[int, ...] = (),
        void_colours: tuple[tuple[int, int, int], ...] = (),
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        holdout: int | float = 0.1,
        crop: int = 512,
        class_weighting: Literal["frequency"] | None = None,
        **options: Any,
    ) -> None:
        if crop < 1:
            raise OptionError(f"crop={crop} must be at least 1 pixel.")
        self.crop = crop
        defaults = voc_colours(min(len(classes), 255) + 1)[1:]
        self.label_map = LabelMap(
            names=tuple(one.name for one in classes),
            palette=tuple(
                default if one.colour is None else one.colour for one, default in zip(classes, defaults, strict=False)
            ),
            ids=tuple(number if one.value is None else one.value for number, one in enumerate(classes)),
            void_ids=void_values,
            void_colours=void_colours,
        )
        self.given_colours = {one.colour: one.name for one in classes if one.colour is not None}
        super().__init__(root, class_weighting=class_weighting, **options)
        self.folders, self.mask_suffix, self.holdout = (images, masks), mask_suffix, holdout

    @override
    def default_train_transforms(self) -> list[Transform]:
        """MMSegmentation's: square crops of images resized to about them, times 0.5 to 2."""
        return mmseg_augmentation(self.crop, long_side=4 * self.crop, short_side=self.crop)

    @override
    def open(self) -> dict[str, Source | None]:
        images, masks = (self.root / folder for folder in self.folders)
        for folder in (images, masks):
            if not folder.is_dir():
                raise DataError(
                    f"{folder} is missing. Images are expected as {images}/train/<name>.jpg or {images}/<name>.jpg and "
                    f"masks as {masks}/train/<name>{self.mask_suffix}.png or {masks}/<name>{self.mask_suffix}.png. "
                    "Name other folders by images and masks."
                )
        splits: tuple[Split, ...] = ("train", "val", "test")
        there = [split for split in splits if (images / split).is_dir()]
        if there and "train" not in there:
            raise DataError(f"{images} has {' and '.join(there)} and no train. Name the folder of training images so.")
        found = {
            split: self.pairs(split, images / split, masks / split, mask_suffix=self.mask_suffix) for split in there
        }
        train = found.get("train") or self.pairs("train", images, masks, mask_suffix=self.mask_suffix)
        if "val" in found:
            return {"train": train, "val": found["val"], "test": found.get("test")}
        kept, held = hold_out(np.zeros(len(train), np.int64), self.holdout)
        return {
            "train": train.subset(kept, augmented=True),
            "val": train.subset(held, augmented=False) if len(held) else None,
            "test": found.get("test"),
        }
