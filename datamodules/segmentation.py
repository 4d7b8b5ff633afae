"""What data sets for semantic segmentation share: pairs of images and label files, and batches of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from datamodules.base import DataModule, Split
from datamodules.collation import stack
from datamodules.decoding import Encoded
from datamodules.errors import BadSample, DataError, OptionError
from datamodules.finding import images_in, shown
from datamodules.label_maps import VOID, Colour, LabelMap
from datamodules.label_survey import LabelSurvey, survey
from datamodules.looking import Counts, Marks
from datamodules.masks import EncodedMask
from datamodules.remarks import named, remarks_on_classes
from datamodules.transforms.segmentation_pipeline import SegmentationPipeline, refuse_labelled_fill

# A training waits no longer than this for its label files to be looked through.
SURVEY_SECONDS = 60.0


class LabelledPixels(DataModule):
    """Images with a class for every pixel.

    Batch: ``image`` [B,3,H,W]; ``label`` uint8 [B,h,w] with 255 for void, of the image's size in training and of the
    label file's in validation and test, where ``eval_transforms`` may resize images; ``index`` int64 [B].

    ``on_bad_sample: skip`` leaves out images without label file and label files without image, too.

    Args:
        root: Folder of the data set.
        batch_size: Images of one training batch over all processes.
        eval_batch_size: Images of one validation, test or prediction batch on each process. More than 1 needs images
            of one size.
        class_weighting: ``published`` weights classes as the data set's papers do; ``frequency`` by 1 / ln(1.02 + f)
            with f the class's share of all training pixels (arXiv 1606.02147), counted on first use; None does not.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. By default images to train on and their labels are augmented as
            published for the data set, and others left as they are; labels of others are never transformed.

    Attributes:
        label_map: Classes and how the files write them.
        palette: RGB of each class, uint8 [K,3].
        label_ids: Value of each class in files that an evaluation server of the data set reads.
        ignore_index: Label that is void.

    Raises:
        OptionError: If ``class_weighting`` is unknown, or a training transform labels the pixels that it adds.
        DataError: If a number is out of range.
    """

    pipeline = SegmentationPipeline
    ignore_index = VOID
    label_map: LabelMap
    published_weights: tuple[float, ...] | None = None
    # Classes by the colours that a person has given them.
    given_colours: Mapping[Colour, str] = MappingProxyType({})
    typical_size = (512, 512)

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 16,
        eval_batch_size: int = 1,
        class_weighting: Literal["published", "frequency"] | None = None,
        num_workers: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, num_workers=num_workers, **options)
        if eval_batch_size < 1:
            raise DataError(f"eval_batch_size={eval_batch_size} must be at least 1.")
        choices = ["frequency", None] if self.published_weights is None else ["published", "frequency", None]
        if class_weighting not in choices:
            raise OptionError(
                f"class_weighting={class_weighting!r} must be one of {choices} for {type(self).__name__}."
            )
        refuse_labelled_fill(self.train_transforms)
        self.root, self.eval_batch_size, self.class_weighting = Path(root), eval_batch_size, class_weighting
        self.set_classes(self.label_map)

    def set_classes(self, label_map: LabelMap) -> None:
        """Sets the classes."""
        self.label_map = label_map
        self.class_names = list(label_map.names)
        self.palette = np.array(label_map.palette, np.uint8)
        self.label_ids = list(label_map.ids)

    @override
    def example_sample(self, image: np.ndarray) -> dict[str, Any]:
        return {"image": image, "annotation": np.zeros(image.shape[:2], np.uint8)}

    @override
    def class_counts(self, split: str) -> Counts | None:
        pairs = self.source(split)
        if not isinstance(pairs, Pairs):
            return None
        found = survey(pairs.all_masks(), SURVEY_SECONDS)
        return Counts(found.images[: self.num_classes], found.pixels[: self.num_classes], "pixels")

    @override
    def marks(self, sample: dict[str, Any]) -> Marks:
        label = sample.get("label", sample.get("mask", sample.get("annotation")))
        return Marks(pixels=label.decode() if isinstance(label, EncodedMask) else label, palette=self.palette)

    @override
    def eval_batch(self, world_size: int) -> int:
        return self.eval_batch_size * world_size

    def raw_label(self, split: Split, index: int) -> np.ndarray:
        """Train ids of an image before any transform, uint8 [H,W]; 255 is void.

        Raises:
            DataError: If there are none or they cannot be read.
        """
        return self._labelled(split).mask(index).decode()

    @property
    def class_weights(self) -> list[float] | None:
        """Weight of each class in the loss, or None; see ``class_weighting``.

        Raises:
            DataError: If labels have to be counted and cannot be.
        """
        if self.class_weighting == "frequency":
            return (1 / np.log(1.02 + self.class_frequencies())).tolist()
        return list(self.published_weights or []) if self.class_weighting == "published" else None

    def class_frequencies(self) -> np.ndarray:
        """Each class's share of all training pixels, void included, float64 [K]; counted once and kept in the cache.

        Raises:
            DataError: If a label file cannot be read and ``on_bad_sample`` is ``error``.
        """
        pairs = self._labelled("train")
        found = survey(pairs.all_masks())
        self._skipping.report([BadSample(index, shown(pairs.name(index)), reason) for index, reason in found.problems])
        return found.pixels[: self.num_classes] / found.pixels.sum()

    @override
    def inspect(self) -> list[str]:
        """Looks through the label files of the splits, once; a large data set is sampled for ``SURVEY_SECONDS``.

        Raises:
            DataError: If label files cannot be used, or fewer than two classes have pixels to train on.
        """
        remarks = []
        for split in ("train", "val", "test"):
            source = self._sources.get(split)
            if isinstance(source, Pairs):
                remarks += self._remarks(split, source, survey(source.all_masks(), SURVEY_SECONDS))
        return remarks

    def _remarks(self, split: str, pairs: Pairs, found: LabelSurvey) -> list[str]:
        self.leave_out(
            f"{found.num_problems} label files of the {split} split cannot be used",
            [(pairs.name(index), reason) for index, reason in found.problems],
            found.num_problems,
        )
        images = found.images[: self.num_classes]
        void = ""
        if found.void_by_rule and not images.all():
            void = (
                f" {VOID}, which is void, covers {found.void_by_rule / max(1, found.pixels.sum()):.1%} of the pixels: "
                f"if that is a class, say so by value: {VOID}."
            )
        if split == "train" and (images > 0).sum() < 2:
            there = named(np.flatnonzero(images), self.class_names) or "none"
            raise DataError(
                f"The label files of {pairs.masks} have pixels of fewer than two classes ({there}): there is nothing "
                f"to be told apart.{void or ' Check the values of the classes.'}"
            )
        remarks = remarks_on_classes(split, images, self.class_names, "pixel")
        if remarks and found.looked < len(pairs):
            remarks[-1] += f" (Of {len(pairs):,} label files, {found.looked:,} were looked at.)"
        if void and remarks:
            remarks[0] += void
        return remarks + self._remarks_on_palettes(pairs, found)

    def _remarks_on_palettes(self, pairs: Pairs, found: LabelSurvey) -> list[str]:
        remarks = []
        if found.clash is not None:
            value, *files = found.clash
            one, other = (shown(pairs.masks / pairs.names[position][1]) for position in files)
            remarks.append(
                f"The palettes of {one} and {other} show value {value} in different colours. Values are classes, "
                "whatever their colours: if the colours are what is meant, write the label files as RGB."
            )
        classes = dict(zip(pairs.label_map.ids, self.class_names, strict=True))
        for value, colour in found.colours.items():
            meant = self.given_colours.get(colour)
            if meant is not None and value in classes and classes[value] != meant:
                remarks.append(
                    f"The palettes of the label files in {pairs.masks} show value {value}, which is {classes[value]}, "
                    f"in the colour {colour} of {meant}. Values are classes: set the value of each class as the files "
                    "have it."
                )
        return remarks

    def pairs(
        self,
        split: Split,
        images: Path,
        masks: Path,
        label_map: LabelMap | None = None,
        image_suffix: str = "",
        mask_suffix: str = "",
    ) -> Pairs:
        """Finds the images of a folder and their label files, by name; both folders are listed and no file is opened.

        Args:
            split: Which split it is.
            images: Folder of images, searched with its subfolders.
            masks: Folder of label files with the same subfolders.
            label_map: What the values of these files mean; by default as the data set's.
            image_suffix: What the name of an image ends in, before the extension.
            mask_suffix: What the name of a label file has in its place.

        Raises:
            DataError: If a folder cannot be read or has no pairs, or ``on_bad_sample`` is ``error`` and a file is
                without its partner.
        """
        pictures, labels = _listing(images, image_suffix), _listing(masks, mask_suffix)
        lone = [
            (str(images / pictures[key]), f"its label file {masks / key}{mask_suffix}.png is missing")
            for key in pictures.keys() - labels.keys()
        ]
        lone += [
            (str(masks / labels[key]), f"its image {images / key}{image_suffix}.* is missing")
            for key in labels.keys() - pictures.keys()
        ]
        self.leave_out(f"{len(lone)} files of the {split} split are without partner", sorted(lone))
        names = sorted(pictures.keys() & labels.keys(), key=os.fsencode)
        if not names:
            raise DataError(
                f"No image in {images} has a label file in {masks}. {type(self).__name__} expects images "
                f"<name>{image_suffix}.<extension> and label files <name>{mask_suffix}.png in the same subfolders."
            )
        return Pairs(
            images,
            masks,
            [(pictures[name], labels[name]) for name in names],
            label_map or self.label_map,
            augmented=split == "train",
        )

    def _labelled(self, split: Split) -> Pairs:
        source = self.source(split)
        if not isinstance(source, Pairs):
            raise DataError(f"The {split} split has no labels.")
        return source

    @staticmethod
    @override
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Joins images, labels and indices.

        Raises:
            DataError: If images or labels differ in size.
        """
        for field in ("image", "label"):
            sizes = sorted({sample[field].shape[:2] for sample in samples if field in sample})
            if len(sizes) > 1:
                listed = ", ".join(f"{width}x{height}" for height, width in sizes[:3])
                raise DataError(
                    f"{field.capitalize()}s of one batch differ in size ({listed} ...). End train_transforms with a "
                    "crop such as PaddedCrop; for validation, test and prediction set eval_batch_size: 1."
                )
        return stack(samples)


class Pairs:
    """Images of one split with their label files.

    Args:
        images: Folder of the images.
        masks: Folder of the label files.
        names: Image and label file of each sample, within these folders.
        label_map: What the values of label files mean.
        augmented: Whether labels are transformed with their images.
    """

    def __init__(
        self, images: Path, masks: Path, names: list[tuple[str, str]], label_map: LabelMap, augmented: bool
    ) -> None:
        self.images, self.masks, self.names = images, masks, names
        self.label_map, self.augmented = label_map, augmented

    def __len__(self) -> int:
        return len(self.names)

    def mask(self, index: int) -> EncodedMask:
        """One label file."""
        return EncodedMask(self.masks / self.names[index][1], self.label_map)

    def all_masks(self) -> list[EncodedMask]:
        """All label files."""
        return [self.mask(index) for index in range(len(self))]

    def load(self, index: int) -> dict[str, Any]:
        """One sample as ``SegmentationPipeline`` takes it: ``image``, and ``mask`` or ``annotation``."""
        image = Encoded(self.images / self.names[index][0])
        return {"image": image, "mask" if self.augmented else "annotation": self.mask(index)}

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.images / self.names[index][0])

    def subset(self, indices: Sequence[int] | np.ndarray, augmented: bool) -> Pairs:
        """The samples at some positions."""
        return Pairs(self.images, self.masks, [self.names[int(i)] for i in indices], self.label_map, augmented)


def _listing(folder: Path, suffix: str) -> dict[str, str]:
    """Picture files whose names end in a suffix, by their path in the folder without suffix and extension."""
    found: dict[str, str] = {}
    for name in map(os.fsdecode, images_in(folder)):
        stem, _ = os.path.splitext(name)
        if not stem.endswith(suffix):
            continue
        key = stem.removesuffix(suffix)
        if key in found:
            raise DataError(f"{folder} has both {found[key]} and {name}: remove or rename one of them.")
        found[key] = name
    return found
