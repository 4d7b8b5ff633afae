"""Evaluation batches that need no data set."""

from __future__ import annotations

from typing import Any

import albumentations as A
import pytest
import torch

from datamodules import (
    ADE20K,
    CIFAR10,
    MPII,
    Cityscapes,
    Coco,
    DataModule,
    Digits,
    DigitStreets,
    ImageNet,
    StickFigures,
)
from tests.library.images import image_size


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (Digits(), (3, 8, 8)),
        (CIFAR10(""), (3, 32, 32)),
        (ImageNet(""), (3, 224, 224)),
        (Cityscapes(""), (3, 1024, 2048)),
        (ADE20K(""), (3, 512, 512)),
        (DigitStreets(size=48), (3, 48, 48)),
        (MPII(""), (3, 256, 256)),
        (StickFigures(), (3, 64, 64)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_images_are_normalised_and_of_the_size_of_the_evaluation(data: DataModule, size: tuple[int, int, int]) -> None:
    batch = data.example(2)
    assert image_size(data) == size
    assert batch["image"].shape == (2, *size)
    assert batch["image"].dtype == torch.float32
    # Noise around the middle of the bytes, before the normalisation.
    middle = ((0.5 - torch.tensor(data.mean)) / torch.tensor(data.std))[:, None, None]
    assert (batch["image"] - middle).mean().abs() < 0.3
    assert not torch.equal(*batch["image"])
    assert batch["index"].tolist() == [0, 1]
    assert torch.equal(data.example(2)["image"], batch["image"])


def test_classification_has_labels() -> None:
    assert set(Digits().example()) == {"image", "label", "index"}


def test_segmentation_has_labels_of_the_image_that_was_not_resized() -> None:
    batch = Cityscapes("", eval_transforms=[A.Resize(512, 1024)]).example()
    assert batch["image"].shape == (1, 3, 512, 1024)
    assert batch["label"].shape == (1, 1024, 2048)
    assert batch["label"].dtype == torch.uint8


def test_detection_has_lists_of_images_and_targets() -> None:
    data = Coco("")
    batch = data.example(2)
    assert image_size(data) == (3, 800, 800)
    assert [image.shape for image in batch["image"]] == [(3, 800, 800)] * 2
    target = batch["target"][1]
    assert {"boxes", "labels", "image_id", "original_size"} == set(target)
    assert target["original_size"] == (256, 256)
    assert target["boxes"].tolist() == [[200, 200, 600, 600]]
    assert target["labels"].tolist() == [0]


def test_poses_have_what_they_are_evaluated_with() -> None:
    data = StickFigures(num_train=2, num_val=2, batch_size=2)
    real = next(iter(data.val_dataloader()))
    batch = data.example(2)
    assert {name: (value.shape, value.dtype) for name, value in batch.items() if name != "image"} == {
        name: (value.shape, value.dtype) for name, value in real.items() if name != "image"
    }
    # All joints are in the middle, and their peaks too.
    assert batch["heatmaps"].flatten(2).argmax(2).unique().tolist() == [8 * 16 + 8]
    assert batch["weight"].min() == 1


def test_an_example_is_as_a_real_batch() -> None:
    fields: dict[str, Any] = {"image": torch.float32, "label": torch.int64, "index": torch.int64}
    data = Digits(batch_size=3)
    real = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    for batch in (real, data.example(3)):
        assert {name: value.dtype for name, value in batch.items()} == fields
        assert batch["image"].shape == (3, 3, 8, 8)
