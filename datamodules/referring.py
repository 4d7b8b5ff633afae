"""Referring expressions in the layout of RefCOCO: texts, each of which means one object of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from typing_extensions import override

from datamodules.base import DataModule
from datamodules.errors import DataError, OptionError
from datamodules.json_records import listed, records
from datamodules.pickles import unpickled
from datamodules.questions import PAD, UNKNOWN, WHOLE, Vocabulary, words_of
from datamodules.seen import ImagesInFolders
from datamodules.splits import Source
from datamodules.texts import Texts
from datamodules.transforms.pipeline import Augmentation, Pipeline, Transform


class Reference(NamedTuple):
    """An expression: its text, the number of its image, and the box that it means, as shares of the image's sides."""

    text: str
    image: int
    box: tuple[float, float, float, float]


class References:
    """The expressions of a split.

    Args:
        references: In order.
        seen: The images.
    """

    def __init__(self, references: Sequence[Reference], seen: ImagesInFolders) -> None:
        self.seen = seen
        self.texts = Texts(each.text for each in references)
        self.places = torch.tensor([seen.places[each.image] for each in references])
        self.boxes = torch.tensor([each.box for each in references])

    def __len__(self) -> int:
        return len(self.places)

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``image``, ``question`` and ``box``."""
        image = self.seen.load(int(self.places[index]))
        return image | {"question": self.texts[index], "box": self.boxes[index].numpy()}

    def name(self, index: int) -> str:
        """The file, and what is said of it."""
        return f"{self.seen.name(int(self.places[index]))} ({self.texts[index]!r})"


class ReferencePipeline(Pipeline):
    """Transforms an image, and turns words into numbers.

    Args:
        transforms: Of the image.
        seed: Run's seed.
        vocabulary: Words by number.
        length: Words that are kept.
        asked: What is said of samples without an expression.
    """

    def __init__(
        self, transforms: list[Transform], seed: int, vocabulary: Vocabulary, length: int, asked: str = ""
    ) -> None:
        super().__init__(transforms, seed)
        self.vocabulary, self.length, self.asked = vocabulary, length, asked

    @override
    def __call__(self, sample: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """A sample of ``References``: the fields of a batch, see ``Referring``."""
        made = {"image": super().__call__({"image": sample["image"]}, epoch, index)["image"]}
        made["question"] = self.vocabulary.encode(sample.get("question", self.asked), self.length)
        return made | ({"box": np.asarray(sample["box"], np.float32)} if "box" in sample else {})


class Referring(DataModule):
    """RefCOCO, RefCOCO+ and RefCOCOg, and any data set in their layout.

    In ``root`` are a list of references, each with ``split``, ``ann_id``, ``image_id`` and ``sentences``, a list of
    objects with ``sent``; COCO's ``instances.json``, with the boxes and the sizes of images; and a folder of images,
    whose names end with their number. The list is a pickle, as published, which is read without calling anything, or
    the same as JSON.

    Batch: ``image`` [B,3,H,W]; ``question`` int64 [B,T], words of the expression by number; ``box`` float32 [B,4], x1,
    y1, x2, y2 as shares of the image's sides; ``index`` int64 [B]. Words are numbered by the expressions to train on,
    and are in every checkpoint.

    Args:
        root: Folder of the data set.
        batch_size: Expressions of one batch over all processes.
        references: The list of references, in ``root``: ``.p``, ``.pkl`` or ``.json``.
        instances: COCO's file, in ``root``.
        images: Folder of the images, in ``root``.
        train, val, test: What ``split`` is called; None for no validation, or no test.
        length: Words of an expression that are kept.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. Transforms may not move what is in an image; to resize it is fine.

    Raises:
        OptionError: A length that cannot be, or a transform that would move objects away from their boxes.
    """

    def __init__(
        self,
        root: Path | str = "data/refcoco",
        batch_size: int = 64,
        references: str = "refs(unc).p",
        instances: str = "instances.json",
        images: str = "images",
        train: str = "train",
        val: str | None = "val",
        test: str | None = "testA",
        length: int = 10,
        num_workers: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, num_workers=num_workers, **options)
        if length < 1:
            raise OptionError(f"length={length} has to be at least 1.")
        for each in (*self.train_transforms, *self.eval_transforms):
            if isinstance(each, A.DualTransform | A.BaseCompose) and not isinstance(each, A.Resize):
                raise OptionError(
                    f"{type(each).__name__} moves what is in an image, and its box stays: use albumentations.Resize, "
                    "and transforms of colours."
                )
        self.root = Path(root)
        self.files = {"references": references, "instances": instances, "images": images}
        self.names = {"train": train, "val": val, "test": test}
        self.length = length
        self.vocabulary = Vocabulary((PAD, UNKNOWN, WHOLE))
        self.asked = ""

    @override
    def default_train_transforms(self) -> list[Transform]:
        return [A.Resize(448, 448, interpolation=cv2.INTER_LINEAR)]

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return self.default_train_transforms()

    @override
    def open(self) -> dict[str, Source | None]:
        path = self.root / self.files["references"]
        seen = ImagesInFolders({"": self.root / self.files["images"]}, lambda _, number: number)
        boxes = boxes_by_id(self.root / self.files["instances"])
        found: dict[str, list[Reference]] = {split: [] for split in self.names}
        problems: list[tuple[str, str]] = []
        split_of = {name: split for split, name in self.names.items() if name is not None}
        for place, record in enumerate(_records(path)):
            try:
                name, image, texts, box = _reference(record, boxes)
                if name in split_of:
                    if image not in seen.places:
                        raise DataError(f"there is no image {image}")
                    found[split_of[name]] += [Reference(text, image, box) for text in texts]
            except DataError as problem:
                problems.append((f"reference {place}", str(problem)))
        self.leave_out(f"{path}: {len(problems)} records cannot be used", problems, file=path)
        for name, split in split_of.items():
            if not found[split]:
                raise DataError(f"{path}: no reference is of the split {name!r}. The option {split} says its name.")
        if len(self.vocabulary) == 3:
            # Nothing has been restored.
            self.vocabulary = Vocabulary.of(each.text for each in found["train"])
        return {split: References(each, seen) if each else None for split, each in found.items()}

    @override
    def pipeline_for(self, split: str) -> Augmentation:
        transforms = self.train_transforms if split in self.streams() else self.eval_transforms
        return ReferencePipeline(transforms, self.seed, self.vocabulary, self.length, self.asked)

    @override
    def example_sample(self, image: np.ndarray) -> dict[str, Any]:
        return {"image": image, "question": "what is meant", "box": np.array([0.0, 0.0, 1.0, 1.0], np.float32)}

    def unknown_words(self, text: str) -> list[str]:
        """Words of an expression that have no number."""
        return [word for word in words_of(text) if word not in self.vocabulary.numbers]

    @override
    def state_dict(self) -> dict[str, Any]:
        """Words by number."""
        return {"words": list(self.vocabulary.words)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the words of a checkpoint."""
        self.vocabulary = Vocabulary(state_dict["words"])


def boxes_by_id(path: Path) -> dict[int, tuple[int, tuple[float, float, float, float]]]:
    """Image and box, as shares of the image's sides, of each annotation of a COCO file; of whole images and boxes.

    Raises:
        DataError: The file cannot be read.
    """
    sizes: dict[int, tuple[float, float]] = {}
    rows: list[tuple[int, int, list[float]]] = []
    for section, record in records(path, frozenset({"images", "annotations"})):
        try:
            if section == "images":
                sizes[int(record["id"])] = (float(record["width"]), float(record["height"]))
            else:
                rows.append((int(record["id"]), int(record["image_id"]), [float(each) for each in record["bbox"]]))
        except (KeyError, TypeError, ValueError):
            # A reference to it will say that there is none.
            continue
    found = {}
    for number, image, box in rows:
        width, height = sizes.get(image, (0.0, 0.0))
        if len(box) == 4 and min(width, height, box[2], box[3]) > 0:
            x, y, w, h = box
            corners = np.array([x / width, y / height, (x + w) / width, (y + h) / height]).clip(0, 1).tolist()
            if corners[0] < corners[2] and corners[1] < corners[3]:
                found[number] = (image, tuple(corners))
    return found


def _records(path: Path) -> list[Any]:
    if path.suffix == ".json":
        return list(listed(path, "references"))
    try:
        content = unpickled(path.read_bytes(), path)
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read: {problem.strerror}. The option references names the file."
        ) from problem
    if not isinstance(content, list):
        raise DataError(f"{path} has to be a list of references, and is not.")
    return content


def _reference(
    record: Any, boxes: Mapping[int, tuple[int, tuple[float, float, float, float]]]
) -> tuple[str, int, list[str], tuple[float, float, float, float]]:
    """Split, image, texts and box of a record."""
    try:
        split, number, image = record["split"], int(record["ann_id"]), int(record["image_id"])
        texts = [each["sent"] for each in record["sentences"]]
    except (KeyError, TypeError, ValueError, IndexError) as problem:
        raise DataError("it needs split, ann_id, image_id and sentences with sent each") from problem
    if not isinstance(split, str) or not texts or not all(isinstance(each, str) for each in texts):
        raise DataError("split and sent have to be texts, and there has to be one")
    if number not in boxes or boxes[number][0] != image:
        raise DataError(f"annotation {number} of image {image}, with a box within it, is not there")
    return split, image, texts, boxes[number][1]
