"""Builders of the recorded segmentation data: label values of Cityscapes and HRNet's augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datamodules import Cityscapes
from datamodules.transforms import SegmentationPipeline
from datamodules.transforms.segmentation import hrnet_augmentation

if TYPE_CHECKING:
    from tests.library.golden import Case

# Pixels through OpenCV; labels are equal.
TOLERANCE = 1e-5


def cityscapes_labels(case: Case) -> dict[str, Tensor]:
    label_map = Cityscapes.label_map
    # -1 is 255 in the bytes of a label file.
    train_ids = label_map.train_ids(case.inputs["label_ids"].numpy().astype(np.uint8))
    # The published inverse writes void as the last value that is ignored.
    back = label_map.file_ids(train_ids, void_id=max(label_map.void_ids))
    weights = Cityscapes(root="", class_weighting="published").class_weights
    return {
        "out.train_ids": torch.from_numpy(train_ids),
        "out.back_to_ids": torch.from_numpy(back),
        "out.class_weights": torch.tensor(weights),
    }


class RecordedDraws:
    """In place of a random generator: the draws that were recorded, each within the limits that are asked for."""

    def __init__(self, draws: list[int], mirrored: bool) -> None:
        self.draws, self.mirrored = list(draws), mirrored

    def randint(self, low: int, high: int) -> int:
        drawn = self.draws.pop(0)
        assert low <= drawn <= high, f"{drawn} was recorded, and we draw from {low} to {high}"
        return drawn

    def random(self) -> float:
        return 0.0 if self.mirrored else 1.0


class RecordedLabels:
    """In place of a label file."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.numpy().astype(np.uint8)

    def decode(self, size: tuple[int, int]) -> np.ndarray:
        assert self.labels.shape == size
        return self.labels


def train_augment(case: Case) -> dict[str, Tensor]:
    config = case.config
    pipeline = SegmentationPipeline(hrnet_augmentation(*config["crop"], long_side=config["base"]))
    draws: Any = RecordedDraws(config["draws"], mirrored=config["flip"] == 0)
    pipeline.compose.set_random_state(np.random.default_rng(0), draws)
    image = np.ascontiguousarray(case.inputs["image_bgr"].numpy().astype(np.uint8)[..., ::-1])
    sample = pipeline({"image": image, "mask": RecordedLabels(case.inputs["label"])}, epoch=0, index=0)
    assert not draws.draws, f"the draws {draws.draws} were recorded and not asked for"
    data = Cityscapes(root="")
    batch = data.on_after_batch_transfer(data.collate([sample]), 0)
    return {"out.image": batch["image"][0], "out.label": batch["label"][0]}


CASES = {"cityscapes_labels": cityscapes_labels, "train_augment": train_augment}
