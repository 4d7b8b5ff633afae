"""What exp touches of Lightning that Lightning does not promise; every private name of it stands here.

`tests/lightning_modules/test_internals.py` fails where a release of Lightning renames one of them.
"""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from models.mistakes import Mistake


class Clock:
    """Where a training is, in optimiser steps.

    Args:
        trainer: Its trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @property
    def step(self) -> int:
        """Optimiser steps that are done."""
        return self.trainer.global_step

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last one may have fewer batches than it accumulates."""
        return max(1, math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches))

    @property
    def total_steps(self) -> int | None:
        """Optimiser steps of the whole training; None for one without an end."""
        total = self.trainer.estimated_stepping_batches
        return None if total == float("inf") else int(total)

    @property
    def accumulates(self) -> bool:
        """Whether the gradient of this batch waits for others before a step is taken."""
        return self.trainer.fit_loop._should_accumulate()

    def logs(self, step: int | None = None) -> bool:
        """Whether an optimiser step is one of those that are logged, and this batch is its last.

        Args:
            step: Counted from 1; by default the one that this batch belongs to, asked before it is taken.
        """
        step = self.step + 1 if step is None else step
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step % every == 0 and not self.accumulates

    @property
    def resumes_here(self) -> bool:
        """Whether a training that is saved after this batch goes on exactly.

        It does not where gradients are half gathered, nor where a validation or the end of the epoch comes next.
        """
        if self.accumulates or self.trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            return False
        return not self.validates_next

    @property
    def ends_inside_an_epoch(self) -> bool:
        """Whether the training has taken its last step, with batches left of its epoch."""
        loop = self.trainer.fit_loop.epoch_loop
        return 0 <= loop.max_steps <= self.step and not self.accumulates and not loop._num_ready_batches_reached()

    @property
    def validates_next(self) -> bool:
        """Whether a validation comes after this batch."""
        assert self.trainer.fit_loop._data_fetcher is not None
        return self.trainer.fit_loop.epoch_loop._should_check_val_fx(self.trainer.fit_loop._data_fetcher)


def step_counts(trainer: Trainer) -> tuple[int, int | None]:
    """Optimiser steps of an epoch and of the whole training, before Lightning has set up the training data.

    It is set up here and forgotten again, for Lightning restores the position of a loader that it sets up itself.
    """
    trainer.fit_loop.setup_data()
    clock = Clock(trainer)
    counts = clock.steps_per_epoch, clock.total_steps
    trainer.fit_loop._combined_loader = None
    return counts


def unlogged_row(trainer: Trainer) -> tuple[dict[str, Any], int] | None:
    """What the training step or epoch that ends is about to log, and the step that it is logged under; None if nothing.

    Lightning logs it after `on_train_batch_end` and `on_train_epoch_end`, where checkpoints are taken.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    of_epoch = connector._first_loop_iter is None
    logs = of_epoch or (connector.should_update_logs and not Clock(trainer).accumulates)
    if not trainer.training or trainer._results is None or not logs:
        return None
    metrics = dict(connector.metrics["log"])
    if not metrics:
        return None
    # At the end of an epoch, the count is already that of the next step.
    step = metrics.pop("step", loop._batches_that_stepped - of_epoch)
    return {"epoch": trainer.current_epoch} | convert_tensors_to_scalars(metrics), int(step)


def stay_inside(trainer: Trainer, folder: Path) -> None:
    """Has a trainer, and what is in it, write to a folder where it would write to the working directory by default."""
    if Path(trainer.default_root_dir) == Path.cwd():
        trainer._default_root_dir = str(folder)  # type: ignore[attr-defined]


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that a module is attached to, if any."""
    return module._trainer


def is_compiled(network: nn.Module) -> bool:
    """Whether `network.compile()` was called."""
    return network._compiled_call_impl is not None


def leave_signals_alone(trainer: Trainer) -> None:
    """Has the trainer install no handlers of signals: its own for SIGTERM notes it and goes on."""
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    """Does nothing."""


def wait_at_most(trainer: Trainer, time: timedelta) -> None:
    """Bounds how long the processes of a job wait for one of them, where its strategy has such a bound."""
    if hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = time


def longest_wait(trainer: Trainer) -> timedelta | None:
    """How long the processes of a job wait for one of them; None where its strategy does not say."""
    return getattr(trainer.strategy, "_timeout", None)


def expect_unused_parameters(trainer: Trainer) -> None:
    """Has the processes of a job agree on the parameters that a step does not use, where each takes it as a whole."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs["find_unused_parameters"] = True


def compile_once(network: nn.Module) -> None:
    """Compiles a network in place, so that parameter names stay as they are, unless it is compiled."""
    if not is_compiled(network):
        network.compile()


def check_compiles(network: nn.Module) -> None:
    """Refuses to compile a network with a part that does not suit `torch.compile`, and says why in `refuses_compile`.

    Raises:
        Mistake: There is such a part.
    """
    for module in network.modules():
        if reason := getattr(module, "refuses_compile", None):
            name = type(module).__name__
            raise Mistake(f"{name} does not suit torch.compile: {reason}. Set --model.compile=false")
