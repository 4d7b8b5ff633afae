"""`fit --find lr,batch`: tries learning rates and batch sizes first; what it finds stands in the training's config."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from callbacks import StepSeed
from exp.cli import Cli
from exp.run_directory import fingerprint, read_state
from exp.usage import UsageError
from lightning_modules.schedules import Schedule
from models.mistakes import Mistake

KINDS = ("lr", "batch")
# The range test: steps, and the first and last learning rate over the config's.
STEPS, LOWEST, HIGHEST = 100, 1e-3, 1e2
# How much of the mean so far stays in the smoothed loss, and how far above its least value the test ends.
MEMORY, TOO_FAR = 0.9, 2.0
# Of the batch sizes: the first, steps of each of which the first ones warm up, and how much of the best rate will do.
FIRST_BATCH, BATCH_STEPS, WARM, GOOD_ENOUGH = 8, 5, 2, 0.95


@dataclass(frozen=True)
class Rising(Schedule):
    """A learning rate that grows by the same factor at each step, from `LOWEST` to `HIGHEST` of the config's."""

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        return base * factors(total_steps)


def factors(steps: int) -> NDArray[np.float64]:
    """What the learning rate is multiplied by at each step of the range test, [steps]."""
    return np.geomspace(LOWEST, HIGHEST, steps)


def promising(losses: list[float]) -> float | None:
    """A tenth of the learning rate at which the smoothed loss of a range test is least, over the config's.

    After Smith, "Cyclical learning rates for training neural networks" (arXiv 1506.01186), section 3.3: the loss over
    a growing learning rate is level, falls, and rises. The mean lags behind, and at the least value a training is at
    the edge already; a tenth is what people take.

    Args:
        losses: of the steps, as far as the test went.

    Returns:
        A factor of the config's learning rate; None if the loss never falls.
    """
    mean, smoothed = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        smoothed.append(mean / (1 - MEMORY**step))
    least = int(np.argmin(smoothed)) if smoothed else 0
    # The first means are of few losses.
    if least < STEPS // 10:
        return None
    return float(factors(STEPS)[least]) / 10


def found_first(find: str, argv: list[str], start: Callable[[Cli], None]) -> tuple[list[str], dict[str, Any]]:
    """The arguments of a `fit` with what was found as options, and what was found, for `run.json`.

    What an unfinished run of the same command has found is taken again, so that the command goes on with it.

    Args:
        find: `lr`, `batch` or both, with a comma between them.
        argv: the arguments of the command without `--find`.
        start: gives a network the weights that the training starts from.

    Raises:
        UsageError: something else is to be found, or it cannot be found here.
    """
    kinds = find.split(",")
    if not set(kinds) <= set(KINDS):
        raise UsageError(f"--find={find}: lr, batch or lr,batch can be found")
    cli = Cli(argv, "fit")
    if cli.trainer.world_size > 1:
        raise UsageError("--find works on one device: find there, and give the values to the others")
    mark = fingerprint(cli.plain | {"find": find})
    before = _found_before(Path(cli.config.runs) / cli.experiment, mark)
    if before:
        return [*argv, *_options(before)], before
    start(cli)
    cli.datamodule.setup("fit")
    found: dict[str, Any] = {"of": mark}
    if "batch" in kinds:
        found["batch_size"] = _batch_size(cli)
        print(f"found: --data.batch_size={found['batch_size']}", flush=True)
        cli.datamodule.batch_size = found["batch_size"]
    if "lr" in kinds:
        found["lr"] = _learning_rate(cli)
        print(f"found: --model.optimizer.lr={found['lr']:g}", flush=True)
    del cli
    gc.collect()
    return [*argv, *_options(found)], found


def _found_before(folder: Path, mark: str) -> dict[str, Any]:
    """What the unfinished runs of an experiment have found for the same command."""
    for run in sorted(folder.iterdir()) if folder.is_dir() else []:
        facts = read_state(run) if run.is_dir() else {}
        found = facts.get("found")
        if isinstance(found, dict) and found.get("of") == mark and facts.get("status") != "finished":
            return found
    return {}


def _options(found: dict[str, Any]) -> list[str]:
    names = {"batch_size": "data.batch_size", "lr": "model.optimizer.lr"}
    return [f"--{option}={found[name]}" for name, option in names.items() if name in found]


def _learning_rate(cli: Cli) -> float:
    optimizer = cli.plain["model"]["init_args"].get("optimizer") or {}
    given = (optimizer.get("init_args") or {}).get("lr")
    if not isinstance(given, float | int):
        raise UsageError("--find=lr looks around a learning rate: give --model.optimizer.lr")
    watch = _Losses()
    _train(cli, STEPS, watch)
    factor = promising(watch.losses)
    if factor is None:
        raise UsageError(
            f"--find=lr: the loss does not fall at any learning rate from {given * LOWEST:g} to {given * HIGHEST:g}; "
            "give another --model.optimizer.lr to look around"
        )
    return float(f"{given * factor:.2g}")


def _batch_size(cli: Cli) -> int:
    """The smallest batch that trains almost as many images a second as the fastest that fits."""
    data, given = cli.datamodule, cli.datamodule.batch_size
    images = len(data.source("train"))
    rates: dict[int, float] = {}
    size = FIRST_BATCH
    while size <= max(FIRST_BATCH, images // 8):
        data.batch_size = size
        watch = _Times()
        try:
            _train(cli, BATCH_STEPS, watch)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            break
        finally:
            data.batch_size = given
        rates[size] = size * (len(watch.times) - WARM) / (watch.times[-1] - watch.times[WARM - 1])
        # A larger batch that is no faster is followed by none that is.
        if len(rates) > 2 and max(rates, key=rates.__getitem__) * 4 <= size:
            break
        size *= 2
    if not rates:
        raise UsageError(f"--find=batch: not even {FIRST_BATCH} images fit in memory")
    return min(size for size, rate in rates.items() if rate >= GOOD_ENOUGH * max(rates.values()))


def _train(cli: Cli, steps: int, watch: Callback) -> None:
    """Trains a copy of the network for some steps, as the config says but for its schedules and callbacks."""
    task, options = copy.deepcopy(cli.model), cli.config_init.trainer
    for part in task.parts().values():
        part.schedule, part.schedules = Rising(), {}
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=1,
        precision=options.precision,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val,
        gradient_clip_algorithm=options.gradient_clip_algorithm,
        max_steps=steps,
        limit_val_batches=0,
        callbacks=[StepSeed(cli.config.seed_everything or 0), watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(task, cli.datamodule)
    except Mistake as error:
        raise UsageError(f"--find: {error}") from error


class _Losses(Callback):
    """Notes the loss of each step, and ends where it is far above the least."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._batches: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the mean over the batches of a step."""
        self._batches.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        if trainer.global_step == len(self.losses):
            return
        loss = float(np.mean(self._batches))
        self._batches = []
        if not np.isfinite(loss) or (len(self.losses) > STEPS // 10 and loss > TOO_FAR * max(self.losses[:5])):
            trainer.should_stop = True
            return
        self.losses.append(loss)


class _Times(Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Waits for the device, whose step is done only then."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
