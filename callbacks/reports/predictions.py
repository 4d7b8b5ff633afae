"""What `predict` writes: one report a task, whose arguments are the command's options."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from torch import nn
from typing_extensions import override

from callbacks.reports.cost import Cost
from callbacks.reports.report import Report
from drawing.numbers import readable
from lightning_modules.task import Batch, Task
from models.mistakes import Mistake


@dataclass(frozen=True)
class Source:
    """Where the weights of a prediction are from.

    Args:
        path: the file.
        content: what else is in the checkpoint; empty for weights alone.
        class_names: empty where neither the checkpoint nor the data says.
        validated: the folder where `validate` puts what it makes of the file.
    """

    path: Path
    content: Mapping[str, Any]
    class_names: list[str]
    validated: Path


class Predictions(Report, ABC):
    """Writes what a task predicts for images without labels, and says what that took.

    A subclass is one task's; `predict` has an option for each of its arguments. Arguments that the task or its network
    cannot follow are refused by `prepare`.
    """

    splits = ("predict",)
    in_every_run = False

    def __init__(self) -> None:
        self.seconds = 0.0
        # Of the classes; empty where nobody says.
        self.names: list[str] = []
        self._named_by = Path()
        self._started = 0.0

    # What a subclass writes.

    def prepare(self, trainer: Trainer, task: Task, source: Source) -> None:
        """Has the task follow the options.

        Args:
            trainer: the one that will predict.
            task: with its weights.
            source: where they are from.

        Raises:
            Mistake: options that cannot be followed; the message names them, and says what can be done.
        """
        self.names = source.class_names
        self._named_by = source.path

    def names_of(self, classes: int) -> list[str]:
        """A name for each class that the network tells apart.

        Args:
            classes: how many there are.

        Raises:
            Mistake: fewer are named than there are.
        """
        if 0 < len(self.names) < classes:
            raise Mistake(
                f"{self._named_by}: it names {len(self.names)} classes, but its network tells {classes} apart: take "
                "another checkpoint"
            )
        return self.names or [f"class {i}" for i in range(classes)]

    @classmethod
    def notes(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """What somebody needs beside the network to predict, as plain values by name: thresholds, for instance.

        Args:
            content: of a checkpoint; empty for weights alone.
        """
        return {}

    def entries(self, batches: list[Any], task: Any, data: Any) -> list[dict[str, Any]]:
        """What is said of each image, in their order: its `file`, and what the task predicts, as plain values.

        Args:
            batches: what the prediction steps returned.
            task: that predicted; `prepare` has seen it.
            data: its data module.
        """
        raise Mistake(f"{type(self).__name__} writes what {type(task).__name__} predicts, and has no entries of it")

    @abstractmethod
    def finish(self, batches: list[Any], folder: Path, console: Console) -> list[Path]:
        """Writes files and pictures, and prints what a person wants to see at once.

        Args:
            batches: what the prediction steps returned.
            folder: exists.
            console: what is printed to.

        Returns:
            What was written.
        """

    def counted_network(self) -> nn.Module:
        """What a prediction runs of the network, to be counted."""
        return self.task.network

    def spent(self, cost: Cost, images: int) -> dict[str, Any]:
        """What was spent, as plain numbers.

        Args:
            cost: has watched the prediction.
            images: how many there were.
        """
        # Operators are counted in a run of their own, for counting takes time.
        ran = cost.measure(self.counted_network()) if self.task.costs_one_forward else {}
        return {
            "images": images,
            "executed_macs": ran.get("macs"),
            "executed_samples": ran.get("macs_samples"),
            "seconds_per_image": self.seconds / images,
        }

    def tell_spent(self, spent: Mapping[str, Any], console: Console) -> None:
        """Prints what `spent` found."""
        counted = ""
        if spent["executed_macs"] is not None:
            counted = (
                f"executed: {readable(spent['executed_macs'])} multiply-adds an image (operators that ran for the "
                f"first {spent['executed_samples']} images), "
            )
        milliseconds = f"{spent['seconds_per_image'] * 1e3:.3f} ms an image in the network"
        console.print(counted + milliseconds, highlight=False, soft_wrap=True)

    # The clock.

    @override
    def look(self, batch: Batch) -> None:
        wait_for(self.task.device)
        self._started = time.perf_counter()

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        # A task that has a deadline to keep has timed its images itself, trial runs left out.
        wait_for(self.task.device)
        self.seconds += sum(outputs["seconds"]) if "seconds" in outputs else time.perf_counter() - self._started


def title_of(images: int, shown: int) -> str:
    """What stands over a sheet of images."""
    return f"{images} image{'' if images == 1 else 's'}" + (f", the first {shown}" if images > shown else "")


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given; the CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
