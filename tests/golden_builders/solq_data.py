"""Builders of the recorded SOLQ cases of the data: annotations to targets, and their transforms."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import albumentations as A
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules import Coco
from datamodules.coco import CocoImages
from datamodules.transforms import ResizeShortestEdge, ScenePipeline, Transform
from datamodules.transforms.detection import fitted_size
from datamodules.transforms.packed_masks import pack

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-6


def transforms(case: Case) -> dict[str, Tensor]:
    config = case.config
    top, left, height, width = config["crop"]
    steps: dict[str, Transform] = {
        "hflip": A.HorizontalFlip(p=1),
        "crop": A.Crop(left, top, left + width, top + height),
        "resize": ResizeShortestEdge([config["resize"]], config["max_size"]),
    }
    results = {f"out.{name}.{key}": value for name, step in steps.items() for key, value in moved(case, step).items()}
    rows = config["size_table"]
    fitted = [fitted_size(h, w, size, max_size)[::-1] for w, h, size, max_size in rows]
    results["out.size_table"] = torch.tensor([[*row, *size] for row, size in zip(rows, fitted, strict=True)])
    resized = {name.removeprefix("out.resize."): value for name, value in results.items() if ".resize." in name}
    return results | {f"out.normalize.{key}": value for key, value in normalised(resized).items()}


def moved(case: Case, step: Transform) -> dict[str, Tensor]:
    """What a transform makes of the recorded image and objects."""
    inputs = {name: value.numpy() for name, value in case.inputs.items()}
    height, width = inputs["image"].shape[:2]
    patches = [(0, 0, mask.astype(np.uint8)) for mask in inputs["masks"]]
    target = {
        "boxes": inputs["boxes"],
        # Their numbers, so that what is not in our targets can be looked up for the objects that stay.
        "labels": np.arange(len(patches)),
        "masks": pack(patches, len(patches), height, width),
    }
    done = ScenePipeline([step])({"image": inputs["image"].astype(np.uint8), "target": target}, 0, 0)
    image, target = done["image"], done["target"]
    kept, boxes, size = target["labels"], target["boxes"], torch.tensor(image.shape[:2])
    # Areas are not in our targets. Recorded is the area of the box after a crop, else that of the mask to scale.
    area = case.inputs["area"][kept] * (size.prod() / (height * width))
    if isinstance(step, A.Crop):
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return {
        "image": torch.from_numpy(image.astype(np.int64)),
        "boxes": boxes,
        "labels": case.inputs["labels"][kept],
        "masks": target["masks"].float(),
        "iscrowd": case.inputs["iscrowd"][kept],
        "area": area,
        "orig_size": torch.tensor([height, width]),
        "size": size,
    }


def normalised(resized: dict[str, Tensor]) -> dict[str, Tensor]:
    """The resized sample as our data modules normalise it on the device, and its boxes as the losses take them."""
    batch = Coco.collate([{"image": resized["image"].numpy().astype(np.uint8), "target": {}, "index": 0}])
    image = Coco(root="").on_after_batch_transfer(batch, 0)["image"][0]
    height, width = resized["size"].tolist()
    boxes = resized["boxes"]
    centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
    relative = centred / torch.tensor([width, height, width, height])
    return resized | {"image": image, "boxes": relative, "xyxy_boxes": boxes}


def coco_prepare(case: Case) -> dict[str, Tensor]:
    config = case.config
    image = {"id": config["image_id"], "file_name": "image.png", "height": config["h"], "width": config["w"]}
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, EXP_CACHE=folder):
        source = data_set(Path(folder), image, config["annotations"]).source("train")
        assert isinstance(source, CocoImages)
        sample = source.load(0)
        target = ScenePipeline([])(sample, 0, 0)["target"]
        objects = source.annotations.objects(0)
        areas = source.annotations.column("areas")[objects["rows"]]
        crowds = source.annotations.column("crowds")[objects["rows"]]
    return {
        "out.boxes": target["boxes"],
        "out.labels": target["labels"],
        "out.masks": target["masks"].float(),
        "out.area": torch.from_numpy(areas),
        "out.iscrowd": torch.from_numpy(crowds).long(),
        "out.image_id": torch.tensor([target["image_id"]]),
        "out.orig_size": torch.tensor(target["original_size"]),
        "out.size": torch.tensor(target["masks"].shape[1:]),
    }


def data_set(root: Path, image: dict[str, Any], annotations: list[dict[str, Any]]) -> Coco:
    """A data set of one image, written as COCO's is."""
    used = sorted({annotation["category_id"] for annotation in annotations})
    content = {
        "images": [image],
        "annotations": [annotation | {"image_id": image["id"]} for annotation in annotations],
        "categories": [{"id": number, "name": str(number)} for number in used],
    }
    (root / "instances.json").write_text(json.dumps(content))
    (root / "images").mkdir()
    Image.new("RGB", (image["width"], image["height"])).save(root / "images" / image["file_name"])
    return Coco(
        root,
        labels="coco",
        train_images="images",
        train_annotations="instances.json",
        val_images="images",
        val_annotations="instances.json",
        on_bad_sample="skip",
    )


CASES = {"transforms": transforms, "coco_prepare": coco_prepare}
