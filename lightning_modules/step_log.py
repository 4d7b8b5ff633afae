"""What training steps found since they were last logged, kept on the device until then."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class StepLog:
    """Named scalars of the micro-batches since the last logged step, and how long they took.

    What is logged is their mean over micro-batches and processes; no other step waits for them.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Tensor]] = []
        self._since = self._paused = time.perf_counter()

    def __len__(self) -> int:
        """Micro-batches that are not logged yet."""
        return len(self._rows)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Notes a micro-batch."""
        self._rows.append(terms)

    def take(self, trainer: Trainer, batch_size: int) -> tuple[dict[str, Tensor], float]:
        """The means of what was noted, and samples a second over all processes; begins anew.

        Args:
            trainer: The training's trainer; every process must ask.
            batch_size: Samples of a micro-batch on this process.
        """
        # Over the processes first, as `state` does: sums in another order differ in the last digit.
        means = trainer.strategy.reduce(self._table(), reduce_op="mean").mean(0)
        found = dict(zip(self._rows[0], means.unbind(), strict=True))
        now = time.perf_counter()
        rate = len(self._rows) * batch_size * trainer.world_size / (now - self._since)
        self._rows, self._since = [], now
        return found, rate

    def start(self) -> None:
        """Starts the clock."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stops the clock."""
        self._paused = time.perf_counter()

    def go_on(self) -> None:
        """Moves the clock on by what the pause took."""
        self._since += time.perf_counter() - self._paused

    def state(self, trainer: Trainer) -> dict[str, Any]:
        """What is not logged yet, averaged over the processes, of which there may be another number later."""
        return {"names": list(self._rows[0]), "values": trainer.strategy.reduce(self._table(), reduce_op="mean")}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Restores what `state` returned."""
        rows = state["values"].to(device).unbind() if state else ()
        self._rows = [dict(zip(state["names"], row.unbind(), strict=True)) for row in rows]

    def _table(self) -> Tensor:
        """[micro-batches, names]."""
        return torch.stack([torch.stack([value.float() for value in row.values()]) for row in self._rows])
