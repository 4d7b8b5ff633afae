"""A task with a student and a teacher, both with a batch norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.task import Batch
from tests.library.toy_task import Sums


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


class Taught(Sums):
    """The student learns what the teacher says of images that it sees less of; the teacher learns nothing by itself."""

    def __init__(self, network: nn.Module | None = None, **options: Any) -> None:
        options = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.5)} | options
        pair = nn.ModuleDict({"student": network or normed(), "teacher": type(network)() if network else normed()})
        super().__init__(pair, **options)

    def forward(self, images: Tensor) -> Tensor:
        return self.network["teacher"](images)  # type: ignore[index, no-any-return]

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.network["student"], self.network["teacher"])]  # type: ignore[index]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = batch["image"]
        with torch.no_grad():
            said = self.network["teacher"](images)  # type: ignore[index]
        error = (self.network["student"](images * 0.5) - said - 1).square().mean()  # type: ignore[index]
        return self.total_loss({"square": error}, {}, len(images))


def taught(**options: Any) -> Taught:
    """The task with the same weights every time."""
    torch.manual_seed(0)
    return Taught(**options)
