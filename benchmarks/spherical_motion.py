"""What `SphericalMotion` adds to a training that logs every tenth step, with it and without it in turns.

    python -m benchmarks.spherical_motion

A ResNet-18 on images of 32x32 pixels and timm's smallest ConvNeXt on 64x64, in Lightning without a logger. Trainings
with and without take turns, on one thread; printed are medians of CPU time, which other work on the machine disturbs
less than wall-clock, and the median of the ratios of neighbours. The first steps, in which weights are found, count
apart.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning
import timm
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from benchmarks.step_overhead import Batches, Data
from callbacks import SphericalMotion
from exp.quiet import silence
from exp.trainers import NoProfiler
from lightning_modules import Classification
from models.spherical_motion.invariance import LOOKS

# Weights are found and measured once before the clock starts.
FIRST, STEPS, REPEATS = 10 * (1 + LOOKS // 10), 30, 5
NETWORKS = {"resnet18": 32, "convnext_atto": 64}


class Images(Batches):
    """The same few batches of images of some size."""

    def __init__(self, steps: int, size: int) -> None:
        super().__init__(steps)
        for batch in self.batches:
            batch["image"] = torch.randn(len(batch["label"]), 3, size, size)


class Sized(Data):
    """A data module around `Images`."""

    def __init__(self, steps: int, size: int) -> None:
        super().__init__(steps)
        self.batches = Images(steps, size)


class Clock(Callback):
    """CPU time of the first steps and of those after them."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Starts it."""
        self.times = [time.process_time()]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Notes the end of the first steps, and of all."""
        if batch_idx + 1 in (FIRST, FIRST + STEPS):
            self.times.append(time.process_time())


def training(name: str, size: int, callbacks: list[lightning.Callback]) -> tuple[float, float]:
    """CPU seconds of the first steps, and of the others a step."""
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, num_classes=10)
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[*callbacks, clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=NoProfiler(),
        log_every_n_steps=10,
    )
    sgd = lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3)  # noqa: E731
    trainer.fit(Classification(network, optimizer=sgd), Sized(FIRST + STEPS, size))
    began, found, ended = clock.times
    return found - began, (ended - found) / STEPS


def main() -> None:
    """Prints a line for each network."""
    silence()
    torch.set_num_threads(1)
    for name, size in NETWORKS.items():
        rows = [(training(name, size, []), training(name, size, [SphericalMotion()])) for _ in range(REPEATS)]
        bare, motion = (1e3 * statistics.median(column[i][1] for column in rows) for i in (0, 1))
        ratio = statistics.median(with_it[1] / without[1] for without, with_it in rows)
        finding = statistics.median(with_it[0] - without[0] for without, with_it in rows)
        print(
            f"{name}: {bare:.1f} ms a step without, {motion:.1f} ms with; ratio {ratio:.3f}; finding the weights took "
            f"{1e3 * finding:.0f} ms once"
        )


if __name__ == "__main__":
    main()
