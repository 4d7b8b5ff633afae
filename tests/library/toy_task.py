"""A task that counts to ten: the least that a task is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from lightning_modules import Task
from lightning_modules.findings import Findings, gathered
from lightning_modules.task import Batch
from tests.library.batches import Batches

SAMPLES = 10


class Line(nn.Module):
    """A weight and a bias."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


class Sums(Task):
    """Finds the mean of the numbers that it is shown, and how many there were."""

    monitor = "val/mean"
    shown = ("mean",)

    def __init__(self, network: nn.Module | None = None, classes: int | None = None, **options: Any) -> None:
        super().__init__(network or Line(), **options)
        self.num_classes = classes
        self.sums = torch.zeros(2, dtype=torch.float64)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.total_loss({"square": self(batch["image"]).square().mean()}, {}, len(batch["image"]))

    def start(self, split: str) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)

    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        values = self(batch["image"]).detach().double().sum(1).cpu()
        self.sums += torch.stack([values.sum(), torch.tensor(float(len(values)))])
        return {"index": batch["index"]}

    def finish(self, split: str) -> Findings:
        total, images = torch.stack(gathered(self.sums)).sum(0).unbind()
        return Findings({"mean": total / images, "images": images})


class Numbers(lightning.LightningDataModule):
    """Ten samples in batches of four: the last one is incomplete."""

    batch_size = 4
    num_classes = 3

    def __init__(self, samples: int = SAMPLES) -> None:
        super().__init__()
        self.samples = samples

    def batches(self) -> list[Batch]:
        images = torch.randn(self.samples, 4, generator=torch.Generator().manual_seed(0))
        parts = torch.arange(self.samples).split(self.batch_size)
        return [{"image": images[i], "index": i} for i in parts]

    def train_dataloader(self) -> Batches:
        return Batches(self.batches())

    def val_dataloader(self) -> Batches:
        return Batches(self.batches())

    test_dataloader = predict_dataloader = val_dataloader


def seeded(**options: Any) -> Sums:
    """The task with the same weights every time."""
    torch.manual_seed(0)
    return Sums(**options)


def saved(folder: Path) -> dict[str, Any]:
    """The checkpoint that a test has written."""
    return torch.load(folder / "kept.ckpt", weights_only=True)
