"""A detector and scenes in memory that obey the contracts and cost nothing."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from tests.library.batches import Batches

CATEGORY_IDS = [7, 3, 90]


class ToyDetector(nn.Module):
    """Predicts a fixed box for each image, scored by a learned number for each class."""

    num_classes = 3

    def __init__(self, has_masks: bool = True) -> None:
        super().__init__()
        self.has_masks = has_masks
        self.backbone = nn.Linear(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        logits = self.head(self.backbone(torch.stack([image.mean((1, 2)) for image in images])))
        if self.training:
            assert targets is not None
            counts = torch.stack([target["labels"].bincount(minlength=3) for target in targets])
            return {"count": (logits - counts).abs().mean(), "size": logits.square().mean()}
        predictions = []
        for i, image in enumerate(images):
            height, width = targets[i].get("original_size", image.shape[1:]) if targets else image.shape[1:]
            box = torch.tensor([[1.0, 1.0, width / 2, height / 2]]).expand(3, 4)
            scores, labels = logits[i].sigmoid().sort(descending=True)
            predictions.append({"boxes": box, "scores": scores, "labels": labels})
            if self.has_masks:
                mask = torch.zeros(height, width, dtype=torch.bool)
                mask[1 : height // 2, 1 : width // 2] = True
                predictions[-1]["masks"] = mask.expand(3, height, width)
        return predictions


class ToyScenes(lightning.LightningDataModule):
    """Noise with one to three boxes an image, seen at half its size."""

    class_names = ("cat", "dog", "bird")
    num_classes = 3
    category_ids = tuple(CATEGORY_IDS)
    mean, std = (0.5,) * 3, (0.2,) * 3

    def __init__(self, images: int = 6, batch_size: int = 2) -> None:
        super().__init__()
        self.images = images
        self.batch_size = batch_size
        self.predict_paths: list[Any] = []
        self.bad_samples: dict[str, str] = {}

    def size(self, index: int) -> tuple[int, int]:
        return 40 + 4 * index, 60

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes xywh in the original image, and labels."""
        height, width = self.size(index)
        boxes = [[1, 1, width / 2 - 1, height / 2 - 1], [width / 2, 2, 9.5, 11], [3, height / 2, 6, 7]]
        return np.array(boxes[: index % 4]).reshape(-1, 4), np.array([index % 3, 1, 2])[: index % 4]

    def batch(self, indices: list[int]) -> dict[str, Any]:
        targets, images = [], []
        for index in indices:
            boxes, labels = self.objects(index)
            height, width = self.size(index)
            corners = torch.tensor(boxes, dtype=torch.float32) / 2
            corners[:, 2:] += corners[:, :2]
            targets.append(
                {"boxes": corners, "labels": torch.tensor(labels, dtype=torch.int64), "original_size": (height, width)}
            )
            generator = torch.Generator().manual_seed(index)
            images.append(torch.rand(3, height // 2, width // 2, generator=generator))
        return {"image": images, "target": targets, "index": torch.tensor(indices)}

    def loader(self) -> Batches:
        indices = list(range(self.images))
        return Batches([self.batch(indices[i : i + self.batch_size]) for i in range(0, self.images, self.batch_size)])

    train_dataloader = val_dataloader = test_dataloader = loader

    def ground_truth(self, split: str) -> dict[str, Any]:
        annotations: list[dict[str, Any]] = []
        for index in range(self.images):
            for (x, y, w, h), label in zip(*(part.tolist() for part in self.objects(index)), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 - index,
                        "category_id": CATEGORY_IDS[label],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        sizes = [self.size(index) for index in range(self.images)]
        return {
            "images": [{"id": 100 - i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)],
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, self.class_names, strict=True)],
        }

    def image_ids(self, split: str) -> np.ndarray:
        return 100 - np.arange(self.images)

    def sample_name(self, split: str, index: int) -> str:
        return f"{split}/{index}.png"

    def raw_image(self, split: str, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        return rng.integers(0, 255, (*self.size(index), 3), np.uint8)

    def picture(self, split: str, index: int, longest: int) -> np.ndarray:
        return self.raw_image(split, index)
