"""Segmenters that answer what they are shown, and the scenes for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_modules.segmentation_losses import VOID
from models.decisions import note
from tests.library.batches import Batches

CLASSES = 3
SIZE = (40, 50)


class Answers(nn.Module):
    """Reads the answer off the image, which has a channel for each class; the first exit knows it mirrored."""

    num_classes = CLASSES

    def __init__(self, exits: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CLASSES, CLASSES, 1)
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        self.exits = exits

    def forward(self, images: Tensor) -> Any:
        logits = self.conv(images)
        return [logits.flip(-2), logits][-self.exits :]


class OneByOne(Answers):
    """The same as a `MultiExit`, at half of the resolution."""

    num_exits = 2

    def start(self, images: Tensor) -> dict[str, Any]:
        return {"x": F.avg_pool2d(images, 2)}

    def advance(self, exit: int, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        logits = self.conv(state["x"])
        mask = logits[:, 0] > 0
        computed = [torch.ones_like(mask), mask][: exit + 1]
        note(self, "exit", torch.stack(computed, 1), "exit", [f"exit {i}" for i in range(exit + 1)])
        return (logits if exit else logits.flip(-2)), state


class Scenes(lightning.LightningDataModule):
    """Images that hold their labels, some of them at twice the size of the images."""

    batch_size = 2
    num_classes = CLASSES
    class_names = ("a", "b", "c")
    palette = np.eye(3, dtype=np.uint8) * 200
    label_ids = (7, 8, 30)
    class_weights: list[float] | None = None

    def __init__(self, samples: int = 5, zoom: int = 1, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        # Squares of 2x2 pixels, so that half of the resolution is enough to see them.
        coarse = torch.randn(samples, CLASSES, SIZE[0] // 2, SIZE[1] // 2, generator=generator)
        self.images = coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
        noise = torch.randint(CLASSES, (samples, *SIZE), generator=generator)
        right = torch.rand(samples, *SIZE, generator=generator) < 0.7
        labels = torch.where(right, self.images.argmax(1), noise).to(torch.uint8)
        labels[:, :4] = VOID
        self.labels = labels.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)

    def source(self, split: str) -> Tensor:
        return self.images

    def sample_name(self, split: str, index: int) -> str:
        return f"city{index // 3}/image{index % 3}.png"

    def raw_image(self, split: str, index: int) -> np.ndarray:
        return np.zeros((*self.labels.shape[1:], 3), np.uint8)

    def picture(self, split: str, index: int, longest: int) -> np.ndarray:
        return self.raw_image(split, index)

    def image_size(self, split: str, index: int) -> tuple[int, int]:
        return int(self.labels.shape[1]), int(self.labels.shape[2])

    def loader(self) -> Batches:
        indices = torch.arange(len(self.images))
        parts = [slice(i, i + self.batch_size) for i in range(0, len(indices), self.batch_size)]
        return Batches([{"image": self.images[p], "label": self.labels[p], "index": indices[p]} for p in parts])

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, **quiet, **options)
