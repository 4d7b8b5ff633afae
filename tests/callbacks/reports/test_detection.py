"""Pictures and files of an evaluation, and what of them is true."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from callbacks.reports.detection import Detections, objects_of
from drawing.detection import (
    MOST_BARS,
    Objects,
    attention_maps,
    category_bars,
    detection_sheet,
    overlay,
    precision_recall,
    sampling_points,
)
from drawing.figures import save
from lightning_modules import Detection
from lightning_modules.coco_metrics import ImageResult
from tests.library.reports import placed, trainer_with
from tests.library.toy_detector import CATEGORY_IDS, ToyDetector, ToyScenes

PICTURES = ["category_ap.png", "detections.png", "precision_recall.png"]


FILES = ["categories.csv", "detections_bbox.json"]


def run(folder: Path, command: str, has_masks: bool = True) -> Detection:
    module = Detection(ToyDetector(has_masks))
    trainer = trainer_with(placed(Detections(images=3), folder), folder=folder, max_epochs=1)
    if command == "fit":
        trainer.fit(module, ToyScenes())
    else:
        getattr(trainer, command)(module, ToyScenes(), verbose=False)
    return module


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_leaves_pictures_and_files(command: str, tmp_path: Path) -> None:
    module = run(tmp_path, command)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == PICTURES
    boxes = json.loads((tmp_path / "detections_bbox.json").read_text())
    masks = json.loads((tmp_path / "detections_segm.json").read_text())
    assert len(boxes) == len(masks) == 18
    assert boxes[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert {each["category_id"] for each in boxes} == set(CATEGORY_IDS)
    # The image of id 100 is 40 high and 60 wide: from (1, 1) to (30, 20).
    assert [each["bbox"] for each in boxes if each["image_id"] == 100] == [[1, 1, 29, 19]] * 3
    assert isinstance(masks[0]["segmentation"]["counts"], str)
    with (tmp_path / "categories.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == ["cat", "dog", "bird"]
    assert module.findings is not None
    assert [float(row["box_ap"]) for row in rows] == pytest.approx(module.findings.per_category["box"][:, 0], abs=1e-4)


def test_fit_draws_and_writes_at_its_end(tmp_path: Path) -> None:
    run(tmp_path, "fit", has_masks=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*PICTURES, *FILES])


def test_objects_are_drawn_where_they_are(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), 255, np.uint8)
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 40:60, 40:60] = True
    box = np.array([[40.0, 40, 60, 60]])
    plain = imread(save(overlay(image, Objects(box[:0], np.zeros(0, int)), ["a"]), tmp_path / "plain.png"))
    drawn = imread(save(overlay(image, Objects(box, np.zeros(1, int), None, mask), ["a"]), tmp_path / "drawn.png"))
    assert plain.shape == drawn.shape
    changed = np.abs(plain - drawn).max(2) > 0.05
    rows, columns = np.nonzero(changed)
    height, width = changed.shape
    assert changed[int(0.8 * height), int(0.8 * width)]
    # The label stands above the box; nothing is drawn far from both.
    assert rows.min() > 0.45 * height
    assert columns.min() > 0.55 * width


def test_low_scores_are_left_out_and_objects_follow_the_picture() -> None:
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[1, 20:, 30:] = True
    boxes = torch.tensor([[0, 0, 60, 40], [30, 20, 60, 40], [6, 4, 12, 8]])
    found = {"boxes": boxes, "labels": torch.arange(3), "scores": torch.tensor([0.9, 0.5, 0.1]), "masks": masks}
    result = ImageResult.of(found, (40, 60), 0, 0, "x")
    whole, half = np.zeros((40, 60, 3), np.uint8), np.zeros((20, 30, 3), np.uint8)
    above = objects_of(result, whole, 0.5)
    assert above.labels.tolist() == [0, 1]
    assert above.masks is not None
    assert np.array_equal(above.masks, masks[:2].numpy())
    assert above.boxes[1].tolist() == [30, 20, 60, 40]
    assert objects_of(result, whole, 0.95, at_least=1).labels.tolist() == [0]
    assert len(objects_of(result, half, 0.95).masks) == 0
    small = objects_of(result, half, 0.0)
    assert small.boxes.tolist() == [[0, 0, 30, 20], [15, 10, 30, 20], [3, 2, 6, 4]]
    assert small.masks is not None
    assert small.masks.shape == (3, 20, 30)
    assert small.masks[1].sum() == small.masks[1, 10:, 15:].sum() == 150
    annotated = Objects(boxes.numpy(), np.arange(3), None, masks.numpy()).drawn_on(half, (40, 60))
    assert np.array_equal(annotated.masks, small.masks)


def test_many_categories_stay_readable() -> None:
    names = [f"category {k}" for k in range(80)]
    values = np.linspace(0, 1, 80)
    objects = np.ones(80, int)
    objects[79] = 0
    figure = category_bars(names, {"box": values, "mask": values}, objects, "AP")
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(shown) == MOST_BARS
    assert shown[0] == "category 78 (1)"
    assert shown[-1] == "category 0 (1)"


def test_where_a_query_looks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (48, 96, 3), np.uint8)
    found = Objects(np.array([[10.0, 10, 40, 40]]), np.zeros(1, int), np.array([0.7]))
    points = sampling_points(image, rng.uniform(0, 48, (3, 16, 2)), rng.uniform(0, 1, (3, 16)), found, ["a"], "query 4")
    assert len(points.axes) == 3
    assert all(axes.collections[0].get_offsets().shape == (16, 2) for axes in points.axes)
    maps = attention_maps(image, rng.uniform(0, 1, (2, 6, 12)), found, ["a"], "query 4")
    assert [len(axes.images) for axes in maps.axes] == [2, 2]
    curves = precision_recall({"box": np.full((10, 101), 0.25)})
    assert curves.axes[0].get_legend().get_texts()[0].get_text() == "IoU 0.5: 0.250"
    sheet = detection_sheet([image] * 4, [found] * 4, ["a"], ["x"] * 4, "four")
    for i, figure in enumerate((points, maps, curves, sheet)):
        assert save(figure, tmp_path / f"{i}.png").stat().st_size > 5000
