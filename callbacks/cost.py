"""What an inference of the run's network costs, measured on the data that it was evaluated on."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from models.compute import executed


class Cost(Callback):
    """Keeps some evaluation samples, and counts on them what the network executes.

    A dynamic network spends another amount on each image, so the samples are the first ones of the validation or test
    split: the same in every run of an experiment.

    Args:
        samples: how many, at most; one batch may hold fewer.
    """

    def __init__(self, samples: int = 64) -> None:
        self.samples = samples
        self._inputs: tuple[Any, ...] | None = None

    def _keep(self, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        inputs = getattr(pl_module, "inference_inputs", None)
        if batch_idx == 0 and inputs is not None:
            self._inputs = inputs(batch, self.samples)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the first batch's samples."""
        self._keep(pl_module, batch, batch_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the first batch's samples."""
        self._keep(pl_module, batch, batch_idx)

    def measure(self, network: torch.nn.Module) -> dict[str, float]:
        """Parameters, and the multiply-adds an image that really ran; empty if nothing was evaluated.

        Args:
            network: in the state to be measured, on any device.
        """
        if self._inputs is None:
            return {}
        device = next(network.parameters()).device
        inputs = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), self._inputs)
        # Operators are counted as they are dispatched, which compiled code leaves out.
        with torch.compiler.set_stance("force_eager"):
            report = executed(network, *inputs)
        return {"params": report.params, "macs": report.macs, "macs_samples": len(inputs[0])}
