"""Cityscapes, and street scenes in its layout."""

from __future__ import annotations

import os
from pathlib import Path

from typing_extensions import override

from datamodules.base import Split
from datamodules.errors import DataError
from datamodules.finding import images_in
from datamodules.label_maps import LabelMap
from datamodules.segmentation import LabelledPixels
from datamodules.splits import Source
from datamodules.transforms import Transform
from datamodules.transforms.segmentation import hrnet_augmentation

IMAGE_SUFFIX = "_leftImg8bit"
IDS_SUFFIX = "_gtFine_labelIds"
TRAIN_IDS_SUFFIX = "_gtFine_labelTrainIds"


class StreetScenes(LabelledPixels):
    """A data set in the layout of Cityscapes.

    Images are ``leftImg8bit/<split>/<city>/<name>_leftImg8bit.png`` (or another format), label files
    ``gtFine/<split>/<city>/<name>_gtFine_labelIds.png`` or, in a split that has none of these,
    ``..._gtFine_labelTrainIds.png``, whose values are train ids already. Splits are train, val and, where its labels
    are public, test.

    See ``LabelledPixels`` for batches and arguments.
    """

    test_labels_are_public = True

    @override
    def open(self) -> dict[str, Source | None]:
        sources: dict[str, Source | None] = {"train": self._split("train"), "val": self._split("val"), "test": None}
        if self.test_labels_are_public and (self.root / "gtFine" / "test").is_dir():
            sources["test"] = self._split("test")
        return sources

    def _split(self, split: Split) -> Source:
        images, masks = (self.root / kind / split for kind in ("leftImg8bit", "gtFine"))
        missing = [str(folder) for folder in (images, masks) if not folder.is_dir()]
        if missing:
            raise DataError(
                f"{' and '.join(missing)} missing: {type(self).__name__} has {images}/<city>/<name>{IMAGE_SUFFIX}.png "
                f"and {masks}/<city>/<name>{IDS_SUFFIX}.png (or {TRAIN_IDS_SUFFIX}.png)."
            )
        mapped = not any(Path(os.fsdecode(name)).stem.endswith(IDS_SUFFIX) for name in images_in(masks))
        return self.pairs(
            split,
            images,
            masks,
            label_map=self.label_map.as_train_ids() if mapped else self.label_map,
            image_suffix=IMAGE_SUFFIX,
            mask_suffix=TRAIN_IDS_SUFFIX if mapped else IDS_SUFFIX,
        )


class Cityscapes(StreetScenes):
    """Cityscapes, fine annotations: 2975 training and 500 validation images of 1024x2048 pixels, 19 classes.

    ``root`` holds ``leftImg8bit`` and ``gtFine`` as leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of
    https://www.cityscapes-dataset.com unpack. There is no test split, as the labels of its images are not public:
    predict on ``leftImg8bit/test`` and submit.

    See ``LabelledPixels`` for batches and arguments.
    """

    label_map = LabelMap(
        names=(
            "road",
            "sidewalk",
            "building",
            "wall",
            "fence",
            "pole",
            "traffic light",
            "traffic sign",
            "vegetation",
            "terrain",
            "sky",
            "person",
            "rider",
            "car",
            "truck",
            "bus",
            "train",
            "motorcycle",
            "bicycle",
        ),
        palette=(
            (128, 64, 128),
            (244, 35, 232),
            (70, 70, 70),
            (102, 102, 156),
            (190, 153, 153),
            (153, 153, 153),
            (250, 170, 30),
            (220, 220, 0),
            (107, 142, 35),
            (152, 251, 152),
            (70, 130, 180),
            (220, 20, 60),
            (255, 0, 0),
            (0, 0, 142),
            (0, 0, 70),
            (0, 60, 100),
            (0, 80, 100),
            (0, 0, 230),
            (119, 11, 32),
        ),
        ids=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        # 255 is -1, the licence plate, in a byte; it is void everywhere.
        void_ids=(0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30),
    )
    published_weights = (
        0.8373,
        0.9180,
        0.8660,
        1.0345,
        1.0166,
        0.9969,
        0.9754,
        1.0489,
        0.8786,
        1.0023,
        0.9539,
        0.9843,
        1.1116,
        0.9037,
        1.0865,
        1.0955,
        1.0865,
        1.1529,
        1.0507,
    )
    typical_size = (1024, 2048)
    test_labels_are_public = False

    @override
    def default_train_transforms(self) -> list[Transform]:
        """HRNet's: crops of 512x1024 at scales from 0.5 to 2.1."""
        return hrnet_augmentation(512, 1024, long_side=2048)


class CamVid(StreetScenes):
    """CamVid in the layout of Cityscapes: 367 training, 101 validation and 233 test images of 360x480, 11 classes.

    See ``LabelledPixels`` for batches and arguments.
    """

    label_map = LabelMap(
        names=(
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "sign",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ),
        palette=(
            (128, 128, 128),
            (128, 0, 0),
            (192, 192, 128),
            (128, 64, 128),
            (60, 40, 222),
            (128, 128, 0),
            (192, 128, 128),
            (64, 64, 128),
            (64, 0, 128),
            (64, 64, 0),
            (0, 128, 192),
        ),
        ids=tuple(range(11)),
    )
    typical_size = (360, 480)

    @override
    def default_train_transforms(self) -> list[Transform]:
        """HRNet's, in proportion: crops of 352x480 at scales from 0.5 to 2.1."""
        return hrnet_augmentation(352, 480, long_side=480)
