"""What training any network shares: optimiser, schedule, named losses, penalties and their logging."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.parameter_groups import LayerDecay, parameter_groups
from lightning_modules.schedules import Constant, Schedule

log = logging.getLogger(__name__)


class Task(LightningModule):
    """A built network with its optimiser and schedule; a subclass adds the losses and metrics of its task.

    A subclass computes a dict of named scalar losses in `training_step` and returns `self.total_loss(losses, batch)`.
    Callbacks may put callables into `self.penalties` (name -> function that returns a scalar tensor); they are
    evaluated after the forward pass and added to the loss (compute budget, sparsity).

    Args:
        network: the network to train.
        optimizer: called with the parameter groups, e.g. `torch.optim.AdamW`, `timm.optim.Lamb`, `timm.optim.Lars`.
            Norms, biases and other 1-D parameters get no weight decay.
        schedule: the learning rate per optimiser step; `None` keeps it constant.
        layer_decay: learning rates that fall with a layer's distance from the head.
        reference_batch: the effective batch (samples per optimiser step) for which the optimiser's `lr` is meant;
            given one, the learning rate is scaled linearly to the batch in use.
        compile: compile the network with `torch.compile`.
        channels_last: keep images and convolutions in channels-last memory order, which is faster on most devices.
    """

    monitor: str = "val/loss"
    monitor_mode: str = "min"

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        schedule: Schedule | None = None,
        layer_decay: LayerDecay | None = None,
        reference_batch: int | None = None,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        if channels_last:
            # `Module.to` would refuse the kernels of dynamic convolutions, which have five axes.
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.ndim == 4:
                    tensor.data = tensor.data.to(memory_format=torch.channels_last)
        self.make_optimizer = optimizer
        self.schedule = schedule or Constant()
        self.layer_decay = layer_decay
        self.reference_batch = reference_batch
        self.compile_network = compile
        self.channels_last = channels_last
        self.penalties: dict[str, Callable[[], Tensor]] = {}
        self.losses: dict[str, Tensor] = {}
        self._unlogged: list[dict[str, Tensor]] = []
        self._logged_at = self._paused_at = time.perf_counter()

    def setup(self, stage: str) -> None:
        """Compiles the network once, if asked to; in place, so that parameter names stay as they are."""
        if self.compile_network and self.network._compiled_call_impl is None:
            self.network.compile()

    def forward(self, images: Tensor) -> Any:
        """The network's output for images [B, 3, H, W]."""
        return self.network(self.in_memory_order(images))

    def in_memory_order(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in the memory order that the network is kept in."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def inference_inputs(self, batch: dict[str, Tensor], samples: int) -> tuple[Any, ...]:
        """What the network takes for the first samples of an evaluation batch, to measure its cost on.

        Args:
            batch: as the evaluation steps get it.
            samples: how many, at most.
        """
        return (batch["image"][:samples].clone(),)

    def total_loss(self, losses: dict[str, Tensor], metrics: dict[str, Tensor], batch_size: int) -> Tensor:
        """Adds penalties to the losses, logs each term by name and returns the sum to differentiate.

        What is logged at a step is the mean over all processes and all micro-batches since the last logged step; the
        values stay on the device until then, so that no other step waits for them.

        Args:
            losses: named scalar losses of this micro-batch.
            metrics: named scalar metrics of this micro-batch, logged but not differentiated.
            batch_size: samples in this micro-batch on this process.
        """
        losses = losses | {name: penalty() for name, penalty in self.penalties.items()}
        total = torch.stack(list(losses.values())).sum() if len(losses) > 1 else next(iter(losses.values()))
        self.losses = {name: value.detach() for name, value in losses.items()}
        terms = {"loss": total.detach(), **metrics}
        if len(losses) > 1:
            terms |= {f"loss_{name}": value for name, value in self.losses.items()}
        self._unlogged.append(terms)
        trainer = self.trainer
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (trainer.global_step + 1) % every == 0 and not trainer.fit_loop._should_accumulate():
            self._log_means(batch_size)
        return total

    def _log_means(self, batch_size: int) -> None:
        names, values = list(self._unlogged[0]), _table(self._unlogged)
        # Over the processes first, as `on_save_checkpoint` does: sums in another order differ in the last digit.
        means = self.trainer.strategy.reduce(values, reduce_op="mean").mean(0)
        shown = ("loss", "top1")
        for name, mean in zip(names, means.unbind(), strict=True):
            self.log(f"train/{name}", mean, prog_bar=name in shown)
        now = time.perf_counter()
        samples = len(self._unlogged) * batch_size * self.trainer.world_size
        self.log_dict(
            {
                "train/lr": max(group["lr"] for group in self.trainer.optimizers[0].param_groups),
                "train/images_per_second": samples / (now - self._logged_at),
            }
        )
        self._logged_at = now
        self._unlogged = []

    def on_train_start(self) -> None:
        """Starts the clock."""
        self._logged_at = time.perf_counter()

    def on_validation_start(self) -> None:
        """Notes the time, so that validation does not count as training."""
        self._paused_at = time.perf_counter()

    def on_validation_end(self) -> None:
        """Moves the clock on by what validation took."""
        self._logged_at += time.perf_counter() - self._paused_at

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves what is not logged yet, so that a resumed run logs what an uninterrupted one does.

        The values are averaged over the processes, of which there may be another number when the run goes on.
        """
        if self._unlogged:
            values = self.trainer.strategy.reduce(_table(self._unlogged), reduce_op="mean")
            checkpoint["unlogged"] = {"names": list(self._unlogged[0]), "values": values}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what was not logged yet."""
        if unlogged := checkpoint.get("unlogged"):
            rows = unlogged["values"].to(self.device).unbind()
            self._unlogged = [dict(zip(unlogged["names"], row.unbind(), strict=True)) for row in rows]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Groups the parameters, scales the learning rate and builds the schedule, one value per optimiser step."""
        defaults = self.make_optimizer([nn.Parameter(torch.zeros(1))]).defaults
        lr, weight_decay = defaults["lr"], defaults.get("weight_decay", 0.0)
        if self.reference_batch is not None:
            lr *= self.effective_batch / self.reference_batch
        optimizer = self.make_optimizer(self.parameter_groups(lr, weight_decay))
        self.trainer.fit_loop.setup_data()
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("the schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        total = int(total)
        # The steps are counted before Lightning restores the loader's position; forgotten here, the loader is set up
        # again where it does.
        self.trainer.fit_loop._combined_loader = None
        per_epoch = max(1, int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)
        # A trial of one batch is too short for any warm-up.
        trial = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        schedule = Constant() if trial else self.schedule
        table = schedule.table(lr, steps_per_epoch=per_epoch, total_steps=total)

        def factor(step: int) -> float:
            # The scheduler asks for one value more than there are steps.
            return float(table[min(step, total - 1)] / lr)

        scheduler = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups of the network's parameters, with the learning rate of each."""
        return parameter_groups(self.network, lr=lr, weight_decay=weight_decay, layer_decay=self.layer_decay)

    @property
    def effective_batch(self) -> int:
        """Samples per optimiser step over all processes."""
        return self.trainer.datamodule.batch_size * self.trainer.accumulate_grad_batches  # type: ignore[attr-defined]


def _table(rows: list[dict[str, Tensor]]) -> Tensor:
    """Scalars of several micro-batches as one tensor [micro-batches, names]."""
    return torch.stack([torch.stack([value.float() for value in row.values()]) for row in rows])
