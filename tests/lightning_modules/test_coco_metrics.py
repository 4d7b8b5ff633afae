"""COCO's numbers: those of pycocotools on the same results, and what happens where there is little to count."""

from __future__ import annotations

import copy
import io
import json
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lightning_modules import coco_metrics
from lightning_modules.coco_metrics import (
    IOU_TYPES,
    NUMBERS,
    CocoEvaluation,
    ImageResult,
    Kind,
    decode,
    encode,
    result_entries,
    upload_format,
)

CATEGORY_IDS = [18, 2, 44]


def split(images: int = 12, seed: int = 0) -> tuple[dict[str, Any], list[ImageResult]]:
    """Random annotations of all sizes, crowds among them, and results near and far from them."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results, sizes = [], []
    for index in range(images):
        height, width = (int(n) for n in rng.integers(150, 260, 2))
        sizes.append((height, width))
        boxes, labels, scores = [], [], []
        for _ in range(rng.integers(0, 6)):
            low, extent = rng.uniform(0, 60, 2), rng.uniform(4, [30, 130][rng.integers(2)], 2)
            x, y, w, h = *low, *extent
            label = int(rng.integers(3))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 1000 - index,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": [x, y, w, h],
                    "area": w * h / 2,
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": [[x, y, x + w, y, x, y + h]],
                }
            )
            for _ in range(rng.integers(0, 4)):
                boxes.append(np.r_[low, low + extent] + rng.normal(0, 2, 4))
                labels.append(label if rng.random() < 0.8 else int(rng.integers(3)))
                scores.append(rng.random())
        corners = torch.tensor(np.array(boxes).reshape(-1, 4)).clamp(min=0)
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        masks = [
            (rows >= y0) & (columns >= x0) & ((columns - x0) / (x1 - x0) + (rows - y0) / (y1 - y0) < 1)
            for x0, y0, x1, y1 in corners.tolist()
        ]
        prediction = {
            "boxes": corners,
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores),
            "masks": torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
        }
        results.append(ImageResult.of(prediction, (height, width), 1000 - index, index, f"{index}.jpg"))
    truth = {
        "images": [{"id": 1000 - i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"category {i}"} for i in CATEGORY_IDS],
    }
    return truth, results


def reference(truth: dict[str, Any], results: list[ImageResult], kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """pycocotools' twelve numbers and AP by category, of the same results."""
    with redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = copy.deepcopy(truth)
        annotated.createIndex()
        found = annotated.loadRes(json.loads(json.dumps(result_entries(results, CATEGORY_IDS, kind))))
        evaluation = COCOeval(annotated, found, IOU_TYPES[kind])
        evaluation.params.imgIds = [each.image_id for each in results]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    order = [sorted(CATEGORY_IDS).index(i) for i in CATEGORY_IDS]
    precision = evaluation.eval["precision"][:, :, order, 0, -1]
    return evaluation.stats, precision.mean((0, 1))


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("images", [12, 5])
def test_same_as_pycocotools(kind: Kind, images: int) -> None:
    truth, results = split()
    # Only what was evaluated counts, in whatever order it came, and twice as once.
    chosen = results[3 : 3 + images]
    report = CocoEvaluation(truth, CATEGORY_IDS, ["box", "mask"]).evaluate([*chosen[::-1], chosen[0]])
    stats, by_category = reference(truth, chosen, kind)
    ours = [report.metrics[f"{kind}_{name}"] for name in NUMBERS]
    np.testing.assert_allclose(ours, stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose(report.per_category[kind][:, 0], by_category, rtol=0, atol=1e-12)
    assert 0.05 < ours[0] < 0.95
    assert report.category_names == [f"category {i}" for i in CATEGORY_IDS]
    ids = {each.image_id for each in chosen}
    real = [a["category_id"] for a in truth["annotations"] if a["image_id"] in ids and not a["iscrowd"]]
    assert report.objects.tolist() == [real.count(i) for i in CATEGORY_IDS]
    assert report.precision[kind].shape == (10, 101)
    assert report.precision[kind].mean() == pytest.approx(ours[0], abs=1e-6)


def test_what_was_predicted_is_evaluated_and_what_is_written_is_rounded() -> None:
    truth, _ = split(1)
    truth |= {"annotations": [], "images": [{"id": 7, "height": 100, "width": 100}]}
    boxes = torch.tensor([[10.0, 10, 20, 20], [10.0, 10, 20, 20]])
    for number, x in enumerate((10.0, 30.0)):
        truth["annotations"].append(
            {"id": number, "image_id": 7, "category_id": 2, "bbox": [x, 10, 10, 10], "area": 100, "iscrowd": 0}
        )
    # An IoU of 0.75 less half a thousandth of a pixel, which a hundredth would make 0.75.
    boxes[0, 2] = 17.4955
    # What is surer by less than a millionth comes first.
    boxes[1] = torch.tensor([60.0, 60, 70, 70])
    scores = torch.tensor([0.7, 0.7 + 3e-7])
    prediction = {"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": scores}
    result = ImageResult.of(prediction, (100, 100), 7, 0, "7.jpg")
    assert np.array_equal(result.boxes, boxes.double().numpy())
    assert np.array_equal(result.scores, scores.double().numpy())
    metrics = CocoEvaluation(truth, CATEGORY_IDS, ["box"]).evaluate([result]).metrics
    # One of two objects is found, second: precision 1/2 at the 51 of 101 recalls up to 1/2, at 5 of 10 thresholds.
    assert metrics["box_ap50"] == pytest.approx(0.5 * 51 / 101, abs=1e-12)
    assert metrics["box_ap75"] == 0
    written = upload_format([result], CATEGORY_IDS, "box")
    assert [entry["bbox"] for entry in written] == [[10, 10, 7.5, 10], [60, 60, 10, 10]]
    assert [entry["score"] for entry in written] == [0.7, 0.7]


def test_evaluating_twice_changes_nothing() -> None:
    truth, results = split()
    before = copy.deepcopy(truth)
    evaluation = CocoEvaluation(truth, CATEGORY_IDS, ["box", "mask"])
    assert evaluation.evaluate(results).metrics == evaluation.evaluate(results).metrics
    assert truth == before


def test_nothing_found_is_zero_and_nothing_to_find_is_undefined() -> None:
    truth, results = split()
    nothing = [
        ImageResult(r.image_id, r.index, r.size, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), [])
        for r in results
    ]
    metrics = CocoEvaluation(truth, CATEGORY_IDS, ["box", "mask"]).evaluate(nothing).metrics
    assert metrics["box_ap"] == metrics["mask_ap"] == metrics["box_ar100"] == 0
    empty = truth | {"annotations": []}
    report = CocoEvaluation(empty, CATEGORY_IDS, ["box", "mask"]).evaluate(results)
    assert set(report.metrics.values()) == {-1}
    assert (report.precision["box"] == -1).all()
    assert set(CocoEvaluation(truth, CATEGORY_IDS, ["box"]).evaluate([]).metrics.values()) == {-1}


def test_results_of_unknown_images_and_annotations_without_masks_are_refused() -> None:
    truth, results = split()
    stranger = ImageResult(5, 0, (9, 9), np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), [])
    with pytest.raises(ValueError, match="no image 5"):
        CocoEvaluation(truth, CATEGORY_IDS, ["box"]).evaluate([*results, stranger])
    del truth["annotations"][2]["segmentation"]
    with pytest.raises(ValueError, match="1 annotations have no segmentation, such as the one with id 3"):
        CocoEvaluation(truth, CATEGORY_IDS, ["mask"])
    CocoEvaluation(truth, CATEGORY_IDS, ["box"])


def test_what_is_not_finite_is_refused_by_name() -> None:
    prediction = {
        "boxes": torch.tensor([[0.0, 0, 4, 4], [0, 0, torch.nan, 4], [1, 1, 2, 2]]),
        "scores": torch.tensor([0.9, 0.8, torch.inf]),
        "labels": torch.zeros(3, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=r"2 of 3 predictions for val/17\.jpg"):
        ImageResult.of(prediction, (8, 8), 17, 0, "val/17.jpg")


def test_masks_must_be_as_large_as_the_image() -> None:
    prediction = {"boxes": torch.zeros(2, 4), "scores": torch.zeros(2), "labels": torch.zeros(2, dtype=torch.int64)}
    for masks in (torch.zeros(2, 4, 8, dtype=torch.bool), torch.zeros(2, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"predicted for 3\.png are .* must be torch\.bool \[2, 8, 8\]"):
            ImageResult.of(prediction | {"masks": masks}, (8, 8), 0, 0, "3.png")


def test_codes_are_those_of_pycocotools() -> None:
    masks = torch.rand(5, 13, 21, generator=torch.Generator().manual_seed(0)) > 0.4
    codes = encode(masks)
    theirs = coco_mask.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))
    assert [code["counts"] for code in codes] == [code["counts"].decode() for code in theirs]
    assert np.array_equal(decode(codes, (13, 21)), masks.numpy())
    assert encode(masks[:0]) == []
    assert decode([], (13, 21)).shape == (0, 13, 21)
    json.dumps(codes)


def test_filled_boxes() -> None:
    prediction = {
        "boxes": torch.tensor([[2.0, 1, 7, 4], [-3, -3, 50, 50], [4, 4, 4, 4]]),
        "scores": torch.ones(3),
        "labels": torch.zeros(3, dtype=torch.int64),
    }
    result = ImageResult.of(prediction, (10, 12), 0, 0, "0", filled_boxes=True)
    masks = result.decoded()
    assert masks is not None
    expected = np.zeros((10, 12), bool)
    expected[1:4, 2:7] = True
    assert np.array_equal(masks[0], expected)
    assert masks[1].all()
    assert not masks[2].any()


def test_objects_are_counted_without_a_search_for_each_category() -> None:
    truth, results = split()
    comparisons = [0]

    class Watched(int):
        def __eq__(self, other: object) -> bool:
            comparisons[0] += 1
            return int(self) == other

        __hash__ = int.__hash__

    for each in truth["annotations"]:
        each["category_id"] = Watched(each["category_id"])
    many = [*CATEGORY_IDS, *range(1000, 1500)]
    evaluation = CocoEvaluation(truth, many, ["box"])
    found = evaluation.evaluate(results)
    labels = np.concatenate([evaluation.objects(each.image_id)[1] for each in results])
    assert comparisons[0] < 10 * len(many)
    crowds = [each["iscrowd"] for result in results for each in evaluation.ground_truth.imgToAnns[result.image_id]]
    expected = np.bincount(labels[np.array(crowds) == 0], minlength=len(many))
    assert found.objects.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_categories_in_turns_give_the_same_numbers(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, results = split()
    at_once = CocoEvaluation(truth, CATEGORY_IDS, [kind]).evaluate(results)
    largest = []

    class Watched(coco_metrics.COCOeval_faster):
        def accumulate(self, *args: Any) -> None:
            super().accumulate(*args)
            largest.append(np.asarray(self.eval["precision"]).shape[2])

    monkeypatch.setattr(coco_metrics, "COCOeval_faster", Watched)
    monkeypatch.setattr(coco_metrics, "CATEGORIES_AT_A_TIME", 2)
    in_turns = CocoEvaluation(truth, CATEGORY_IDS, [kind]).evaluate(results)
    assert largest == [2, 1]
    assert in_turns.metrics == pytest.approx(at_once.metrics, abs=1e-12)
    assert (in_turns.per_category[kind] == at_once.per_category[kind]).all()
