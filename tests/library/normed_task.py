"""A small convolutional classifier with batch norms, in training on numbers."""

from __future__ import annotations

import lightning
import torch
from torch import nn

from lightning_modules import Classification
from tests.library.batches import Batches


def network() -> nn.Sequential:
    """Two convolutions before batch norms, one before a layer norm with its bias, one before nothing."""
    built = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 12),
        nn.LayerNorm(12),
        nn.Dropout(0.1),
        nn.Linear(12, 4),
    )
    built.num_classes = 4  # type: ignore[assignment]
    return built


def normed(**options: object) -> Classification:
    """The task with the same weights every time."""
    torch.manual_seed(0)
    sgd = lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)  # noqa: E731
    return Classification(network(), **({"optimizer": sgd} | options))  # type: ignore[arg-type]


class Noise(lightning.LightningDataModule):
    """Images of noise with labels at random.

    Args:
        steps: batches of an epoch over all processes.
        samples: of a batch.
    """

    num_classes = 4

    def __init__(self, steps: int = 12, samples: int = 16) -> None:
        super().__init__()
        self.steps, self.batch_size = steps, samples

    def train_dataloader(self) -> Batches:
        generator = torch.Generator().manual_seed(0)
        batches = [
            {
                "image": torch.randn(self.batch_size, 3, 4, 4, generator=generator),
                "label": torch.randint(4, (self.batch_size,), generator=generator),
                "index": torch.arange(self.batch_size),
            }
            for _ in range(self.steps)
        ]
        assert self.trainer is not None
        return Batches(batches[self.trainer.global_rank :: self.trainer.world_size])
