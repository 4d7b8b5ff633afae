"""A data module and batches for callbacks."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

from tests.library.batches import Batches


class Data(lightning.LightningDataModule):
    batch_size = 4

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Batches:
        return Batches(self.batches)

    def sample_name(self, split: str, index: int) -> str:
        return f"{split}/{index}.png"


def batches(number: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(4, 3, 2, 2, generator=generator),
            "label": torch.randint(3, (4,), generator=generator),
            "index": torch.arange(4 * i, 4 * i + 4),
        }
        for i in range(number)
    ]
