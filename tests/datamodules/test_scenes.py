"""Digit canvases: what is drawn is what is annotated."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules import DigitScenes
from datamodules.canvases import CanvasPainter
from datamodules.coco_annotations import Annotations


def painted(count: int, **options: object) -> list:
    painter = CanvasPainter(range(0, 100), **options)
    return [painter.paint(np.random.Generator(np.random.PCG64(seed))) for seed in range(count)]


def test_objects_are_bright_apart_and_tightly_boxed() -> None:
    canvases = painted(50)
    assert {len(canvas.labels) for canvas in canvases} == {1, 2, 3}
    for canvas in canvases:
        assert canvas.image.shape == (64, 64, 3)
        assert (canvas.masks.sum(0) <= 1).all()
        sides = canvas.corners[:, 2]
        assert sides.min() >= 14
        assert sides.max() <= 29
        for mask, box in zip(canvas.masks, canvas.boxes, strict=True):
            x0, y0, x1, y1 = box
            assert mask.sum() == mask[y0:y1, x0:x1].sum()
            assert all(edge.any() for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))
        drawn = canvas.masks.any(0)
        assert canvas.image.max(2)[drawn].mean() > 2 * canvas.image.max(2)[~drawn].mean()


def test_squares_overlap_only_as_far_as_allowed() -> None:
    def common(canvas: object) -> float:
        (a, b, s), (c, d, t) = canvas.corners.tolist()
        width, height = min(a + s, c + t) - max(a, c), min(b + s, d + t) - max(b, d)
        return max(0, width) * max(0, height) / min(s, t) ** 2

    options = {"size": 32, "objects": (2, 2), "digit_size": (12, 20)}
    apart = [common(one) for one in painted(60, **options) if len(one.labels) == 2]
    partly = [common(one) for one in painted(60, **options, overlap=0.3) if len(one.labels) == 2]
    assert apart
    assert max(apart) == 0
    assert 0.1 < max(partly) <= 0.3


def test_impossible_canvases_are_refused() -> None:
    with pytest.raises(ValueError, match="digit_size="):
        CanvasPainter(range(10), size=20)
    with pytest.raises(ValueError, match="objects="):
        CanvasPainter(range(10), objects=(3, 1))
    with pytest.raises(ValueError, match="num_val=0"):
        DigitScenes(num_val=0)


def test_scenes_are_a_coco_data_set_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"num_train": 20, "num_val": 6, "batch_size": 4, "objects": (1, 4)}
    data = DigitScenes(**options)
    batch = next(iter(data.train_dataloader()))
    assert (len(data.source("train")), len(data.source("val")), data.num_classes) == (20, 6, 10)
    assert (data.class_names[3], data.category_ids[3]) == ("3", 4)
    painter = data.painters["train"]
    for image, target in zip(batch["image"], batch["target"], strict=True):
        canvas = painter.paint(np.random.Generator(np.random.PCG64([20260101, 0, target["image_id"]])))
        assert np.array_equal(target["masks"].numpy(), canvas.masks)
        assert np.array_equal(target["boxes"].numpy(), canvas.boxes)
        assert np.array_equal(target["labels"].numpy(), canvas.labels)
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - canvas.image).mean() < 6
    monkeypatch.setattr(DigitScenes, "write", lambda *_: pytest.fail("written again"))
    again = DigitScenes(**options)
    assert again.ground_truth("val") == data.ground_truth("val")
    val = Annotations(data.root / "annotations/instances_val2017.json")
    assert len(val) == 6


def test_training_and_validation_digits_are_others() -> None:
    painters = DigitScenes().painters
    assert (len(painters["train"].labels), len(painters["val"].labels)) == (1297, 500)
    assert not {one.tobytes() for one in painters["train"].pixels} & {one.tobytes() for one in painters["val"].pixels}
