"""What the framework adds to a training step: exp's trainer against a bare PyTorch loop, side by side.

    python -m benchmarks.step_overhead

Same network, optimiser, schedule and data in memory; exp with its metrics table, progress bar and every standard
callback. Prints the medians over repeats for a short and a long step, and beside them those of a minimal
LightningModule without logger, progress bar and callbacks: what Lightning itself takes. Times are of the processor, on
one thread: other programs disturb them less than wall-clock, and what a side's other threads take counts.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from callbacks import Checkpoints
from exp.checkpoint_io import AtomicCheckpointIO
from exp.loggers import MetricsTable
from exp.progress import ProgressBar
from exp.quiet import silence
from exp.trainers import NoProfiler, standard_callbacks
from lightning_modules import Classification

WARM_UP = 20
REPEATS = 7
# Width of the network and steps measured: about 3 ms and about 20 ms a step on one core.
CASES = {"short step": (12, 400), "long step": (64, 100)}


class Batches:
    """The same few batches over and over, in memory."""

    def __init__(self, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.steps = steps
        self.batches = [
            {
                "image": torch.randn(32, 3, 16, 16, generator=generator),
                "label": torch.randint(10, (32,), generator=generator),
                "index": torch.arange(32),
            }
            for _ in range(4)
        ]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in range(self.steps):
            yield self.batches[step % len(self.batches)]


class Data(lightning.LightningDataModule):
    """A data module around `Batches`."""

    batch_size = 32
    num_classes = 10

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.batches = Batches(steps)

    def train_dataloader(self) -> Batches:
        """The batches."""
        return self.batches


class Clock(Callback):
    """Times the steps after the warm-up."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts the clock after the warm-up."""
        if batch_idx == WARM_UP:
            self.started = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stops it before anything is saved."""
        self.seconds = time.process_time() - self.started


def network(width: int) -> nn.Module:
    """A plain convolutional network."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    built = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 10))
    built.num_classes = 10  # type: ignore[assignment]
    return built


def framework(width: int, steps: int, folder: Path) -> float:
    """Seconds a step with exp."""
    checkpoints, clock = Checkpoints(every_n_steps=10**9), Clock()
    checkpoints.folder = folder
    task = Classification(network(width))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=MetricsTable(folder / "metrics.csv"),
        callbacks=[clock, ProgressBar(), *standard_callbacks(0, checkpoints, task, [])],
        plugins=[AtomicCheckpointIO()],
        profiler=NoProfiler(),
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(task, Data(steps + WARM_UP))
    return clock.seconds / steps


class Minimal(lightning.LightningModule):
    """The least that Lightning can train."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self.network(batch["image"]), batch["label"])

    def configure_optimizers(self) -> Any:
        """AdamW and a constant schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda step: 1.0), "interval": "step"}]


def minimal(width: int, steps: int) -> float:
    """Seconds a step with Lightning alone."""
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Minimal(network(width)), Data(steps + WARM_UP))
    return clock.seconds / steps


def bare(width: int, steps: int) -> float:
    """Seconds a step without."""
    model = network(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = LambdaLR(optimizer, lambda step: 1.0)
    for step, batch in enumerate(Batches(steps + WARM_UP)):
        if step == WARM_UP:
            started = time.process_time()
        loss = F.cross_entropy(model(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return (time.process_time() - started) / steps


def main() -> None:
    """Prints a line for each case."""
    silence()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    for name, (width, steps) in CASES.items():
        rows = []
        for _ in range(REPEATS):
            with tempfile.TemporaryDirectory() as folder:
                ours = framework(width, steps, Path(folder))
            rows.append((ours, minimal(width, steps), bare(width, steps)))
        ours, lightning_alone, theirs = (statistics.median(column) * 1e3 for column in zip(*rows, strict=True))
        ratio = statistics.median(a / c for a, _, c in rows)
        least = statistics.median(b / c for _, b, c in rows)
        print(
            f"{name}: exp {ours:.2f} ms, Lightning alone {lightning_alone:.2f} ms, bare loop {theirs:.2f} ms; "
            f"ratio to the bare loop {ratio:.3f}, Lightning alone {least:.3f}"
        )


if __name__ == "__main__":
    main()
