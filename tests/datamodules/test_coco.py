"""COCO folders to batches: targets, labels, ground truth, groups, and what a second start costs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from pycocotools import mask as coco_mask

from datamodules import Coco, DataError, DataModule, coco_annotations
from datamodules.batches import TrainBatches
from datamodules.coco_annotations import draw
from datamodules.transforms import MultiScaleCrop, ScenePipeline
from tests.library.coco_files import CocoFiles


def target(data: Coco, index: int, split: str = "train") -> dict[str, Any]:
    return ScenePipeline([])(data.source(split).load(index), 0, 0)["target"]


def test_a_batch_is_lists_of_images_and_targets(coco: CocoFiles) -> None:
    data = coco.data(batch_size=3)
    batch = next(iter(data.train_dataloader()))
    order = batch["index"].tolist()
    sizes = [(40, 60), (60, 30), (40, 60)]
    assert [tuple(image.shape) for image in batch["image"]] == [(3, *sizes[index]) for index in order]
    assert all(image.dtype == torch.uint8 for image in batch["image"])
    targets = [batch["target"][order.index(index)] for index in range(3)]
    assert [one["image_id"] for one in targets] == [10, 11, 12] == data.image_ids("train").tolist()
    assert [one["original_size"] for one in targets] == sizes
    assert torch.equal(targets[0]["boxes"], torch.tensor([[10.0, 5, 30, 35], [0, 0, 4, 4]]))
    assert torch.equal(targets[1]["boxes"], torch.tensor([[3.5, 40.25, 23.5, 55.25]]))
    assert [one["labels"].tolist() for one in targets] == [[1, 0], [2], []]
    assert [tuple(one["masks"].shape) for one in targets] == [(2, 40, 60), (1, 60, 30), (0, 40, 60)]
    assert targets[2]["boxes"].shape == (0, 4)
    assert {field: targets[0][field].dtype for field in ("boxes", "labels", "masks")} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "masks": torch.bool,
    }
    assert targets[0]["masks"][0, 5:35, 10:30].all()
    assert targets[0]["masks"][0].sum() == 600
    normalised = data.on_after_batch_transfer(batch, 0)
    expected = (batch["image"][0] / 255 - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[
        :, None, None
    ]
    assert torch.allclose(normalised["image"][0], expected, atol=1e-5)


def test_annotated_objects_are_those_of_all_images(coco: CocoFiles) -> None:
    data = coco.data()
    data.setup("fit")
    labels, boxes = data.annotated_objects("train")
    assert labels.tolist() == [1, 0, 2]
    sizes = np.array([[60, 40, 60, 40]] * 2 + [[30, 60, 30, 60]])
    np.testing.assert_allclose(boxes * sizes, [[10, 5, 30, 35], [0, 0, 4, 4], [3.5, 40.25, 23.5, 55.25]])


def test_labels_are_contiguous_or_category_ids(coco: CocoFiles) -> None:
    contiguous, published = coco.data(), coco.data(labels="coco")
    assert target(contiguous, 0)["labels"].tolist() == [1, 0]
    assert (contiguous.class_names, contiguous.category_ids) == (["car", "plane", "train"], [3, 5, 7])
    assert target(published, 0)["labels"].tolist() == [5, 3]
    assert published.num_classes == 8
    assert published.category_ids == list(range(8))
    assert published.class_names[4:6] == ["id 4", "plane"]
    with pytest.raises(ValueError, match="'contiguous' or 'coco'"):
        coco.data(labels="names")


def test_every_kind_of_outline_is_what_the_coco_api_draws(coco: CocoFiles) -> None:
    random = np.random.default_rng(0)
    polygons = [random.uniform(0, 40, 12).round(2).tolist(), random.uniform(0, 40, 8).round(2).tolist()]
    mask = np.asfortranarray(random.integers(0, 2, (40, 60), np.uint8))
    code = coco_mask.encode(mask)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, mask.flatten("F").astype(int), -1])))
    counts = [0, *runs.tolist()] if mask[0, 0] else runs.tolist()
    image = coco.image()
    coco.object(image, [0, 0, 40, 40], segmentation=polygons)
    coco.object(image, [0, 0, 60, 40], segmentation={"size": [40, 60], "counts": code["counts"].decode()})
    coco.object(image, [0, 0, 60, 40], segmentation={"size": [40, 60], "counts": counts})
    masks = target(coco.data(), 3)["masks"].numpy()
    assert np.array_equal(masks[0], coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 60))))
    assert np.array_equal(masks[1], mask)
    assert np.array_equal(masks[2], mask)


coordinate = st.decimals(-20, 90, places=2).map(float)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8), min_size=1, max_size=3),
    st.integers(1, 70),
    st.integers(1, 70),
)
def test_drawing_only_where_polygons_are_changes_no_pixel(
    polygons: list[list[tuple[float, float]]], height: int, width: int
) -> None:
    flat = [np.array(polygon).reshape(-1) for polygon in polygons]
    whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([one.tolist() for one in flat], height, width)))
    top, left, patch = draw(flat, height, width)
    drawn = np.zeros_like(whole)
    drawn[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    assert np.array_equal(drawn, whole)


def test_ground_truth_is_what_the_file_says_crowds_included(coco: CocoFiles) -> None:
    image = coco.records["val"]["images"][0]["id"]
    coco.object(image, [30, 1, 20, 20], "val", iscrowd=1, segmentation={"size": [40, 60], "counts": [100, 50, 2250]})
    data = coco.data()
    truth = data.ground_truth("val")
    written = json.loads((coco.root / "annotations/instances_val2017.json").read_text())
    assert truth["images"] == written["images"]
    assert truth["categories"] == sorted(written["categories"], key=lambda category: category["id"])
    assert truth["annotations"][0] == written["annotations"][0]
    crowd = truth["annotations"][1]
    assert crowd["iscrowd"] == 1
    assert coco_mask.decode(crowd["segmentation"]).T.reshape(-1)[100:150].all()
    assert coco_mask.area(crowd["segmentation"]) == 50
    assert len(target(data, 0, "val")["boxes"]) == 1
    assert "masks" not in target(data, 0, "val")


def test_images_without_objects_are_kept_unless_asked(coco: CocoFiles) -> None:
    crowded = coco.image()
    coco.object(crowded, [0, 0, 9, 9], iscrowd=1)
    assert coco.data().image_ids("train").tolist() == [10, 11, 12, crowded]
    assert coco.data(keep_empty=False).image_ids("train").tolist() == [10, 11]


def test_a_trial_takes_the_first_images(coco: CocoFiles) -> None:
    for split in ("train", "val"):
        for _ in range(3):
            coco.object(coco.image(split), [1, 1, 5, 5], split)
    whole, trial = (coco.data(limit=limit) for limit in (None, 2))
    for split in ("train", "val"):
        assert trial.image_ids(split).tolist() == whole.image_ids(split)[:2].tolist()
        assert len(trial.ground_truth(split)["images"]) == 2
    with pytest.raises(ValueError, match="limit=0"):
        coco.data(limit=0)


def test_without_masks_no_outline_is_needed(coco: CocoFiles) -> None:
    for record in coco.records["train"]["annotations"]:
        del record["segmentation"]
    with pytest.raises(DataError, match=r"3 annotations have no segmentation, such as annotation 100.*masks: false"):
        coco.data().setup("fit")
    data = coco.data(masks=False)
    assert "masks" not in target(data, 0)
    assert "segmentation" not in data.ground_truth("val")["annotations"][0]


def test_keypoints_move_with_the_image_and_change_sides_in_a_mirror(coco: CocoFiles) -> None:
    for content in coco.records.values():
        for category in content["categories"]:
            category["keypoints"] = ["nose", "left_eye", "right_eye"]
        for record in content["annotations"]:
            record["keypoints"] = [12, 8, 2, 11, 6, 1, 0, 0, 0]
    sample = coco.data().source("train").load(0)
    mirrored = ScenePipeline([A.HorizontalFlip(p=1)])(sample, 0, 0)["target"]["keypoints"]
    width = 60
    # Nose, then what was the right eye (not labelled), then what was the left one.
    assert mirrored[0].tolist() == [[width - 12 - 1, 8, 2], [0, 0, 0], [width - 11 - 1, 6, 1]]
    cropped = ScenePipeline([A.Crop(12, 0, 60, 40)])(sample, 0, 0)["target"]["keypoints"]
    assert cropped[0].tolist() == [[0, 8, 2], [0, 0, 0], [0, 0, 0]]


def test_the_second_start_reads_no_json(coco: CocoFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coco.data()
    data.setup("fit")
    monkeypatch.setattr(coco_annotations, "compile_annotations", lambda *_: pytest.fail("compiled again"))
    again = Coco(coco.root)
    assert again.ground_truth("train") == data.ground_truth("train")


def test_a_changed_file_is_compiled_again(coco: CocoFiles) -> None:
    coco.data().setup("fit")
    coco.object(12, [1, 1, 5, 5])
    assert len(target(coco.data(), 2)["boxes"]) == 1


def test_workers_are_sent_paths_instead_of_annotations(coco: CocoFiles) -> None:
    image = coco.image()
    for _ in range(300):
        coco.object(image, [1, 2, 30, 20])
    data = coco.data()
    source = data.source("train")
    source.load(3)
    sent = pickle.dumps(source)
    assert len(sent) < 5000
    assert len(pickle.loads(sent).load(3)["target"]["boxes"]) == 300


@pytest.mark.parametrize("world", [1, 2])
def test_groups_share_no_batch(world: int) -> None:
    groups = np.random.default_rng(0).integers(0, 2, 103)
    batches = [
        TrainBatches(103, 8, accumulate=2, seed=5, rank=r, world_size=world, groups=groups) for r in range(world)
    ]
    epochs = []
    for epoch in range(2):
        shares = [list(one.keys(epoch)) for one in batches]
        whole = [[index for share in parts for _, index in share] for parts in zip(*shares, strict=True)]
        assert len(whole) == len(batches[0]) == int((np.bincount(groups) // 8).sum()) // 2 * 2
        assert all(len(set(groups[batch])) == 1 and len(batch) == 8 for batch in whole)
        flat = [index for batch in whole for index in batch]
        assert len(set(flat)) == len(flat)
        resumed = [[key for batch in one.keys(epoch, 24) for key in batch] for one in batches]
        assert resumed == [[key for batch in share[3:] for key in batch] for share in shares]
        epochs.append(whole)
    assert epochs[0] != epochs[1]
    # The same batches on any number of processes.
    alone = TrainBatches(103, 8, accumulate=2, seed=5, groups=groups)
    assert [[index for _, index in batch] for batch in alone.keys(1)] == epochs[1]


def test_aspect_groups_bound_the_padding(coco: CocoFiles) -> None:
    for number in range(11):
        coco.image(height=(30, 50)[number % 2], width=40)
    data = coco.data(group_by_aspect=True, batch_size=3)
    batches = list(data.train_dataloader())
    assert len(batches) == 8 // 3 + 6 // 3
    for batch in batches:
        upright = {image.shape[1] > image.shape[2] for image in batch["image"]}
        assert len(upright) == 1
    with pytest.raises(DataError, match="of one group"):
        coco.data(group_by_aspect=True, batch_size=9).train_dataloader()


def test_prediction_needs_no_annotations(coco: CocoFiles, tmp_path: Path) -> None:
    data = coco.data()
    data.predict_paths = [coco.root / "train2017"]
    batch = next(iter(data.predict_dataloader()))
    assert [image.shape[1:] for image in batch["image"]] == [(40, 60), (60, 30)]
    assert batch["target"] == [{"original_size": (40, 60)}, {"original_size": (60, 30)}]
    assert data.sample_name("predict", 1).endswith("11.png")
    elsewhere = Coco(tmp_path / "nothing", num_workers=0)
    elsewhere.predict_paths = data.predict_paths
    assert max(next(iter(elsewhere.predict_dataloader()))["image"][0].shape) == 1200


def test_small_tensors_of_a_batch_share_files(coco: CocoFiles) -> None:
    batch = next(iter(coco.data(batch_size=3).train_dataloader()))
    for tensors in (batch["image"], *([one[field] for one in batch["target"]] for field in ("boxes", "labels"))):
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


def test_workers_give_the_same_batches(coco: CocoFiles) -> None:
    for _ in range(5):
        coco.object(coco.image(height=50, width=40), [3, 4, 20, 30])
    steps: list[Any] = [MultiScaleCrop([40, 50], 60, (30, 40), (20, 30))]
    alone, helped = (
        list(coco.data(num_workers=workers, train_transforms=steps).train_dataloader()) for workers in (0, 1)
    )
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one["image"], other["image"], strict=True))
        for a, b in zip(one["target"], other["target"], strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(torch.as_tensor(a[field]), torch.as_tensor(b[field])) for field in a)


def test_transforms_are_named_in_yaml(coco: CocoFiles) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(DataModule, "data")
    coco.data()
    config = f"""
    data:
      class_path: datamodules.Coco
      init_args:
        root: {coco.root}
        masks: false
        train_transforms:
        - class_path: albumentations.HorizontalFlip
        - class_path: datamodules.transforms.MultiScaleCrop
          init_args: {{sizes: [64, 96], max_size: 128, crop_sizes: [48], crop: [32, 40], resize_first: true}}
        - class_path: datamodules.transforms.ScaleJitter
          init_args: {{size: 50, scales: [0.5, 1.5]}}
        - class_path: datamodules.transforms.RandomSizeCrop
          init_args: {{min_size: 40, max_size: 50}}
        eval_transforms:
        - class_path: datamodules.transforms.ResizeShortestEdge
          init_args: {{sizes: [80], max_size: 100}}
        num_workers: 0
        batch_size: 1
    """
    built = parser.instantiate(parser.parse_string(config)).data
    assert max(next(iter(built.train_dataloader()))["image"][0].shape) <= 50
    assert next(iter(built.val_dataloader()))["image"][0].shape == (3, 67, 100)
