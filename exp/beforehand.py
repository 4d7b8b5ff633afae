"""What can be known of a training before it has a place of its own: nothing of this is refused later."""

from __future__ import annotations

import math
import sys
import warnings

from callbacks.monitored import awaited, check_awaited, logged_by, logs_unsaid
from datamodules import DataError, DataModule
from exp.cli import Cli
from exp.processes import is_started_by_main
from exp.usage import UsageError
from lightning_modules import Task
from lightning_modules.warmup import Shortened
from models.mistakes import Mistake


def check(cli: Cli) -> None:
    """Refuses what cannot be trained, before there is a run directory, a banner or a run of W&B.

    Looked at are the classes of network and data, batches and steps, the schedules of the optimisers, and the names of
    the metrics that somebody waits for. A warm-up that is too long for the training is shortened, and that is said.

    Args:
        cli: the command, whose data has been set up.

    Raises:
        UsageError: it cannot be trained as the command says.
    """
    trainer, task, data = cli.trainer, cli.model, cli.datamodule
    if not isinstance(data, DataModule) or not isinstance(task, Task):
        return
    # As the trainer does it itself when it begins.
    task.trainer = data.trainer = trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    try:
        task.check_classes("fit")
        steps_per_epoch, total_steps = _steps(cli, data)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for line in _shortened(task, steps_per_epoch, total_steps):
                if trainer.is_global_zero and not is_started_by_main():
                    print(f"exp: {line}", file=sys.stderr)
            _check_monitors(cli, data)
    except (Mistake, DataError) as error:
        raise UsageError(str(error)) from error


def _steps(cli: Cli, data: DataModule) -> tuple[int, int]:
    """Optimiser steps of an epoch and of the training, as the trainer is going to count them."""
    trainer = cli.trainer
    batches, limit = len(data.train_dataloader()), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if batches < 1:
        raise Mistake(f"trainer.limit_train_batches={limit} leaves no batch to train on")
    steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    # Lightning takes 1000 epochs where nothing is said, and -1 for no end.
    epochs, steps = trainer.max_epochs, trainer.max_steps
    epochs = (1000 if steps < 0 else -1) if epochs is None else epochs
    ends = [steps_per_epoch * epochs] if epochs >= 0 else []
    ends += [steps] if steps >= 0 else []
    if not ends:
        raise Mistake("the schedule needs an end: set trainer.max_epochs or trainer.max_steps")
    return steps_per_epoch, min(ends)


def _shortened(task: Task, steps_per_epoch: int, total_steps: int) -> list[str]:
    """What schedules say of themselves at this length; from here on, they have said it."""
    if total_steps < 1:
        return []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Shortened)
        for part in task.parts().values():
            for schedule in (part.schedule, *part.schedules.values()):
                schedule.table(1.0, steps_per_epoch, total_steps)
    warnings.simplefilter("ignore", Shortened)
    return list(dict.fromkeys(str(each.message) for each in told))


def _check_monitors(cli: Cli, data: DataModule) -> None:
    """Asks one batch of the validation which metrics there are, if somebody waits for another than the task's own."""
    task = cli.model
    waiting = [each for each in awaited(cli.trainer, task) if each[1] != task.monitor]
    told = logged_by(cli.trainer)
    # What callbacks log that do not say so is seen by the trial validation (`callbacks.monitored`).
    if all(name in told for _, name in waiting) or not data.has("val") or logs_unsaid(cli.trainer):
        return
    found = task.evaluate([next(iter(data.val_dataloader()))], "val", data)
    check_awaited(waiting, {*(f"val/{name}" for name in found.metrics), *told})
