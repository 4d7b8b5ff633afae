"""What a run sees, and a checkpoint of it at every place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback


class Recorder(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(192, 10)
        self.stream: list[tuple[int, list[int], float]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.stream.append((self.current_epoch, batch["index"].tolist(), float(batch["image"].double().sum())))
        return torch.nn.functional.cross_entropy(self.layer(batch["image"].flatten(1)), batch["label"])

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val/n", float(len(batch["index"])), reduce_fx="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class SaveEverywhere(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        trainer.save_checkpoint(self.folder / f"batch{done}.ckpt")

    def on_train_epoch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")

    def on_validation_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"val{trainer.current_epoch}.ckpt")
