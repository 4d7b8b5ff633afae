"""COCO's average precision of boxes and masks: ours against pycocotools, on the same results, in one process.

    python -m benchmarks.coco_evaluation
    python -m benchmarks.coco_evaluation --images 500

By default as many images and results as COCO's validation split has: 5,000 images of 640 x 480, 80 categories, 100
detections an image. Ours starts from what the task keeps of each batch, pycocotools from the lists that it takes; both
index the annotations. Prints seconds, their ratio, and the largest difference of the 24 numbers.
"""

from __future__ import annotations

import argparse
import copy
import io
import time
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lightning_modules.coco_metrics import IOU_TYPES, NUMBERS, CocoEvaluation, ImageResult, Kind, result_entries

HEIGHT, WIDTH = 480, 640
CATEGORIES = 80
CORNERS = 16


def scenes(images: int, detections: int) -> tuple[dict[str, Any], list[ImageResult]]:
    """Annotations of one to fourteen blobs an image, and detections of which most are near one of them."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results = []
    for image_id in range(1, images + 1):
        objects = int(rng.integers(1, 15))
        centre = rng.uniform([0, 0], [WIDTH, HEIGHT], (objects, 2))
        radius = rng.uniform(6, 100, (objects, 2))
        labels = rng.integers(CATEGORIES, size=objects)
        for blob, label in zip(_blobs(rng, centre, radius), labels.tolist(), strict=True):
            code = rle.merge(rle.frPyObjects([blob.ravel().tolist()], HEIGHT, WIDTH))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [float(side) for side in rle.toBbox(code)],
                    "area": float(rle.area(code)),
                    "iscrowd": 0,
                    "segmentation": [blob.ravel().tolist()],
                }
            )
        source = rng.integers(objects, size=detections)
        found = _blobs(rng, centre[source] + rng.normal(0, 8, (detections, 2)), radius[source])
        right = rng.random(detections) < 0.5
        results.append(
            ImageResult(
                image_id,
                image_id - 1,
                (HEIGHT, WIDTH),
                np.concatenate([found.min(1), found.max(1)], 1),
                np.where(right, labels[source], rng.integers(CATEGORIES, size=detections)),
                rng.random(detections),
                [_text(code) for code in rle.frPyObjects(found.reshape(detections, -1).tolist(), HEIGHT, WIDTH)],
            )
        )
    truth = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": k, "name": str(k)} for k in range(1, CATEGORIES + 1)],
    }
    return truth, results


def ours(truth: dict[str, Any], results: list[ImageResult]) -> list[float]:
    """The 24 numbers, as the task computes them."""
    return list(CocoEvaluation(truth, range(1, CATEGORIES + 1), ["box", "mask"]).evaluate(results).metrics.values())


def theirs(truth: dict[str, Any], lists: dict[Kind, list[dict[str, Any]]]) -> list[float]:
    """The 24 numbers by pycocotools."""
    numbers: list[float] = []
    with redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = truth
        annotated.createIndex()
        for kind, entries in lists.items():
            evaluation = COCOeval(annotated, annotated.loadRes(entries), IOU_TYPES[kind])
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            numbers += evaluation.stats[: len(NUMBERS)].tolist()
    return numbers


def _blobs(rng: np.random.Generator, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Polygons [n, CORNERS, 2] around centres, within the image."""
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    reach = rng.uniform(0.7, 1.1, (len(centre), CORNERS, 1)) * radius[:, None]
    points = centre[:, None] + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
    return points.clip(0, [WIDTH, HEIGHT]).round(2)


def _text(code: dict[str, Any]) -> dict[str, Any]:
    counts = code["counts"]
    return {"size": list(code["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def main() -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description="COCO evaluation against pycocotools.")
    parser.add_argument("--images", type=int, default=5000, help="images (default: 5000)")
    parser.add_argument("--detections", type=int, default=100, help="detections an image (default: 100)")
    options = parser.parse_args()
    truth, results = scenes(options.images, options.detections)
    kinds: tuple[Kind, ...] = ("box", "mask")
    lists = {kind: copy.deepcopy(result_entries(results, range(1, CATEGORIES + 1), kind)) for kind in kinds}
    started = time.perf_counter()
    numbers = ours(truth, results)
    middle = time.perf_counter()
    reference = theirs(truth, lists)
    seconds, peer = middle - started, time.perf_counter() - middle
    difference = max(abs(a - b) for a, b in zip(numbers, reference, strict=True))
    print(
        f"{options.images:,} images x {options.detections} detections: ours {seconds:.1f} s, pycocotools {peer:.1f} s, "
        f"{peer / seconds:.1f} times faster; largest difference {difference:.1e} (box AP {numbers[0]:.4f}, mask AP "
        f"{numbers[12]:.4f})"
    )


if __name__ == "__main__":
    main()
