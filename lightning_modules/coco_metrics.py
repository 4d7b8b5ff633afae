"""COCO's average precision of boxes and masks, by faster-coco-eval."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle
from torch import Tensor
from typing_extensions import override

from lightning_modules.findings import Findings
from models.mistakes import Mistake

Kind = Literal["box", "mask"]
IOU_TYPES: dict[Kind, str] = {"box": "bbox", "mask": "segm"}
# COCO's twelve numbers, in the order of its evaluation.
NUMBERS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


# The library keeps half a megabyte for each category: with more of them, they are evaluated in turns.
CATEGORIES_AT_A_TIME = 500


@dataclass
class ImageResult:
    """What was found in one image, on the host.

    Args:
        image_id: COCO's id of the image.
        index: position of the image in its split.
        size: height and width of the image, in whose pixels boxes and masks are.
        boxes: float64 [N, 4], x0 y0 x1 y1.
        labels: int64 [N].
        scores: float64 [N].
        masks: run-length codes, `{"size": [h, w], "counts": str}` each; None for a task without masks.
    """

    image_id: int
    index: int
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: list[dict[str, Any]] | None = None

    @classmethod
    def of(
        cls,
        prediction: dict[str, Tensor],
        size: tuple[int, int],
        image_id: int,
        index: int,
        name: str,
        filled_boxes: bool = False,
    ) -> ImageResult:
        """Fetches one image's prediction from the device, and codes its masks.

        Args:
            prediction: `boxes` [N, 4] xyxy, `labels` [N], `scores` [N], and `masks` bool [N, H, W] if there are any.
            size: height and width of the image that they belong to.
            image_id: COCO's id of the image.
            index: position of the image in its split.
            name: what a person calls the image.
            filled_boxes: whether a mask is the box, filled.

        Raises:
            Mistake: boxes or scores that are not finite, or masks of another size or type.
        """
        boxes = prediction["boxes"].double().cpu().numpy()
        scores = prediction["scores"].double().cpu().numpy()
        bad = ~(np.isfinite(boxes).all(1) & np.isfinite(scores))
        if bad.any():
            raise Mistake(
                f"{int(bad.sum())} of {len(bad)} predictions for {name} have a box or score that is not finite: the "
                "weights may have diverged, or the precision may be too low for this network"
            )
        masks = None
        if filled_boxes:
            masks = _filled(boxes, size)
        elif (pixels := prediction.get("masks")) is not None:
            if pixels.dtype != torch.bool or pixels.shape != (len(boxes), *size):
                raise Mistake(
                    f"the masks predicted for {name} are {pixels.dtype} {list(pixels.shape)}, but must be torch.bool "
                    f"{[len(boxes), *size]}: one for each box, as large as the image"
                )
            masks = encode(pixels)
        return cls(image_id, index, size, boxes, prediction["labels"].cpu().numpy(), scores, masks)

    def rounded(self) -> ImageResult:
        """The same to be written to a file: two decimals of a pixel, as COCO's own files have, and six of a score."""
        return replace(self, boxes=self.boxes.round(2), scores=self.scores.round(6))

    def decoded(self) -> np.ndarray | None:
        """The masks, bool [N, H, W]."""
        return None if self.masks is None else decode(self.masks, self.size)


@dataclass(frozen=True)
class CocoFindings(Findings):
    """What an evaluation found, on the first process.

    Args:
        metrics: COCO's twelve numbers of each kind, `box_ap`, `mask_ar100` ...; -1 where nothing is there to be found.
        category_names: names of the K categories.
        objects: annotated objects of each category in the evaluated images [K].
        per_category: AP and AP50 by kind and category [K, 2]; -1 for categories without objects.
        precision: by kind, precision at 101 recalls from 0 to 1 and 10 IoU thresholds from 0.5 to 0.95, the mean
            over the categories that have objects [10, 101].
        images: the results, by image id.
    """

    metrics: Mapping[str, float]
    category_names: list[str]
    objects: np.ndarray
    per_category: dict[Kind, np.ndarray]
    precision: dict[Kind, np.ndarray]
    images: list[ImageResult]

    @override
    def table(self) -> list[list[str]]:
        """Names of the columns, then a row for each category that has objects."""
        kinds = list(self.per_category)
        rows = [["category", "objects", *(f"{kind}_{name}" for kind in kinds for name in ("ap", "ap50"))]]
        for k, name in enumerate(self.category_names):
            if not self.objects[k]:
                continue
            values = [value for kind in kinds for value in self.per_category[kind][k]]
            rows.append([name, str(self.objects[k]), *(f"{value:.4f}" for value in values)])
        return rows


class CocoEvaluation:
    """Compares results with the annotations of a split.

    Args:
        ground_truth: annotations in COCO's format: `images`, `annotations`, `categories`.
        category_ids: COCO's category of each label.
        kinds: `box`, `mask` or both.

    Raises:
        Mistake: masks shall be compared with annotations that have none.
    """

    def __init__(self, ground_truth: dict[str, Any], category_ids: Sequence[int], kinds: Sequence[Kind]) -> None:
        if "mask" in kinds and (
            missing := [each["id"] for each in ground_truth["annotations"] if not each.get("segmentation")]
        ):
            raise Mistake(
                f"{len(missing)} annotations have no segmentation, such as the one with id {missing[0]}: masks cannot "
                "be evaluated. Use annotations with masks, or a network without."
            )
        # The library writes keys into the annotations, and takes an object with the id 0 for one that was not found.
        numbered = [each | {"id": number} for number, each in enumerate(ground_truth["annotations"], 1)]
        self.ground_truth = COCO(ground_truth | {"annotations": numbered})
        self.category_ids = list(category_ids)
        self._labels = {category: label for label, category in enumerate(self.category_ids)}
        self.kinds = list(kinds)

    def objects(self, image_id: int) -> tuple[np.ndarray, np.ndarray, None, np.ndarray | None]:
        """The annotations of one image: boxes [n, 4] xyxy, labels [n], no scores, and masks bool [n, H, W] or None."""
        annotations = self.ground_truth.imgToAnns[image_id]
        boxes = np.array([each["bbox"] for each in annotations], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([self._labels[each["category_id"]] for each in annotations], np.int64)
        masks = None
        if "mask" in self.kinds and annotations:
            masks = np.stack([self.ground_truth.annToMask(each).astype(bool) for each in annotations])
        return boxes, labels, None, masks

    def evaluate(self, results: Sequence[ImageResult]) -> CocoFindings:
        """Computes COCO's numbers over the images that there are results of, each counted once.

        Args:
            results: one for each evaluated image, empty ones included.

        Raises:
            Mistake: a result of an image that has no entry in the annotations.
        """
        images = sorted({each.image_id: each for each in results}.values(), key=lambda each: each.image_id)
        if unknown := [each.image_id for each in images if each.image_id not in self.ground_truth.imgs]:
            raise Mistake(f"the annotations have no image {unknown[0]}, nor {len(unknown) - 1} others evaluated.")
        image_ids = [each.image_id for each in images]
        metrics: dict[str, float] = {}
        per_category: dict[Kind, np.ndarray] = {}
        curves: dict[Kind, np.ndarray] = {}
        for kind in self.kinds:
            stats, precision = self._compare(images, kind)
            metrics |= {f"{kind}_{name}": float(value) for name, value in zip(NUMBERS, stats, strict=True)}
            per_category[kind] = np.stack([_mean(precision, (0, 1)), _mean(precision[:1], (0, 1))], 1)
            curves[kind] = _mean(precision, (2,))
        names = {each["id"]: each["name"] for each in self.ground_truth.dataset["categories"]}
        counted = Counter(
            each["category_id"]
            for image_id in image_ids
            for each in self.ground_truth.imgToAnns[image_id]
            if not each.get("iscrowd", 0)
        )
        return CocoFindings(
            metrics,
            [names.get(category, f"id {category}") for category in self.category_ids],
            np.array([counted[category] for category in self.category_ids]),
            per_category,
            curves,
            images,
        )

    def _compare(self, images: list[ImageResult], kind: Kind) -> tuple[np.ndarray, np.ndarray]:
        """COCO's twelve numbers, and precision at 10 IoU thresholds and 101 recalls of each category [10, 101, K]."""
        if not images:
            return np.full(len(NUMBERS), -1.0), np.full((10, 101, len(self.category_ids)), -1.0)
        found = self._found(images, kind)
        order = np.argsort(self.category_ids)
        precision = np.empty((10, 101, len(order)))
        # For each category, the sum and the number of the values that each number is the mean of.
        sums, counts = np.empty((2, len(NUMBERS), len(order)))
        for start in range(0, len(order), CATEGORIES_AT_A_TIME):
            part = order[start : start + CATEGORIES_AT_A_TIME]
            with _no_garbage_collection():
                evaluation = COCOeval_faster(self.ground_truth, found, IOU_TYPES[kind])
                evaluation.params.imgIds = [each.image_id for each in images]
                evaluation.params.catIds = [self.category_ids[label] for label in part]
                evaluation.evaluate()
                evaluation.accumulate()
            precisions, recalls = (np.asarray(evaluation.eval[name]) for name in ("precision", "recall"))
            precision[:, :, part] = precisions[:, :, :, 0, -1]
            for number, values in enumerate(_values(precisions, recalls)):
                defined = values > -1
                axes = tuple(range(values.ndim - 1))
                sums[number, part], counts[number, part] = np.where(defined, values, 0).sum(axes), defined.sum(axes)
        count = counts.sum(1)
        return np.where(count > 0, sums.sum(1) / np.maximum(count, 1), -1.0), precision

    def _found(self, images: list[ImageResult], kind: Kind) -> COCO:
        """Results as the library's `loadRes` makes them of a file's entries, without what it never reads."""
        entries = result_entries(images, self.category_ids, kind)
        if kind == "box":
            areas = [width * height for _, _, width, height in (entry["bbox"] for entry in entries)]
        else:
            areas = rle.area([entry["segmentation"] for entry in entries]) if entries else []
        for i, (entry, area) in enumerate(zip(entries, areas, strict=True)):
            entry |= {"id": i + 1, "area": float(area), "iscrowd": 0}
        known = self.ground_truth.dataset
        return COCO({"images": known["images"], "categories": known["categories"], "annotations": entries})


def result_entries(results: Sequence[ImageResult], category_ids: Sequence[int], kind: Kind) -> list[dict[str, Any]]:
    """Results in COCO's format, one entry an object, as precise as they are.

    Args:
        results: what was found in any images.
        category_ids: COCO's category of each label.
        kind: `box` makes entries with a `bbox` (x y width height), `mask` with a `segmentation`.
    """
    ids = np.asarray(category_ids)
    entries = []
    for each in results:
        corners = each.boxes
        shapes: list[Any] = each.masks or []
        if kind == "box":
            shapes = np.concatenate([corners[:, :2], (corners[:, 2:] - corners[:, :2]).clip(0)], 1).tolist()
        key = "bbox" if kind == "box" else "segmentation"
        for category, score, shape in zip(ids[each.labels].tolist(), each.scores.tolist(), shapes, strict=True):
            entries.append({"image_id": each.image_id, "category_id": category, key: shape, "score": score})
    return entries


def upload_format(results: Sequence[ImageResult], category_ids: Sequence[int], kind: Kind) -> list[dict[str, Any]]:
    """Results as files hold them that COCO's evaluation server takes: `result_entries`, rounded."""
    entries = result_entries([each.rounded() for each in results], category_ids, kind)
    for entry in entries if kind == "box" else []:
        entry["bbox"] = [round(side, 2) for side in entry["bbox"]]
    return entries


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """Run-length codes of masks bool [N, H, W], with text counts as JSON takes them."""
    if not len(masks):
        return []
    # COCO counts down the columns: transposed on the device, the memory has that order on the host.
    columns = masks.transpose(1, 2).contiguous().byte().cpu().numpy()
    return _text(rle.encode(columns.transpose(2, 1, 0)))


def decode(codes: Sequence[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """Masks of run-length codes, bool [N, H, W].

    Args:
        codes: `{"size": [h, w], "counts": str}` each.
        size: H and W, for the case that there is none.
    """
    if not codes:
        return np.zeros((0, *size), bool)
    return rle.decode(list(codes)).transpose(2, 0, 1).astype(bool)


def _filled(boxes: np.ndarray, size: tuple[int, int]) -> list[dict[str, Any]]:
    if not len(boxes):
        return []
    height, width = size
    corners = boxes.clip(0, [width, height, width, height])
    shapes = np.concatenate([corners[:, :2], (corners[:, 2:] - corners[:, :2]).clip(0)], 1)
    return _text(rle.frPyObjects(shapes.tolist(), height, width))


def _text(codes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"size": list(code["size"]), "counts": c.decode() if isinstance(c := code["counts"], bytes) else c}
        for code in codes
    ]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Half a million small dicts are made, none in a cycle: the collector would walk through them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _values(precision: np.ndarray, recall: np.ndarray) -> Iterator[np.ndarray]:
    """What each of `NUMBERS` is the mean of, with the category as the last axis.

    Args:
        precision: [IoU thresholds, recalls, K, areas, detections].
        recall: [IoU thresholds, K, areas, detections].
    """
    yield from (precision[thresholds, :, :, 0, -1] for thresholds in (slice(None), 0, 5))
    yield from (precision[:, :, :, area, -1] for area in (1, 2, 3))
    yield from (recall[:, :, 0, most] for most in range(3))
    yield from (recall[:, :, area, -1] for area in (1, 2, 3))


def _mean(precision: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Mean over some axes of what is defined (above -1); -1 where nothing is."""
    defined = precision > -1
    count = defined.sum(axes)
    return np.where(count > 0, np.where(defined, precision, 0).sum(axes) / np.maximum(count, 1), -1.0)
