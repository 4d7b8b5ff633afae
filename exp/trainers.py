"""The trainer of a command, and the callbacks that make every run trustworthy."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import Checkpoints, Monitored, NonFiniteGuard, Preemption, StepSeed
from callbacks.reports import Place, Report, reports_of
from exp.checkpoint_io import AtomicCheckpointIO
from exp.usage import UsageError
from lightning_modules.internals import leave_signals_alone, stay_inside, wait_at_most


class NoProfiler(PassThroughProfiler):
    """Measures nothing, at less cost: Lightning enters a profiling context some sixty times a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        """The same empty context for every action."""
        return self._nothing


def make_trainer(kind: Callable[..., Trainer], options: dict[str, Any], timeout: float) -> Trainer:
    """A trainer that writes checkpoints whole, leaves signals to exp, and fits the job that it is in.

    Args:
        kind: the class.
        options: its arguments.
        timeout: minutes that the processes of a job wait for one of them.

    Raises:
        UsageError: the options fit neither this machine nor this job.
    """
    plugins = options["plugins"] or []
    plugins = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
    on_slurm = SLURMEnvironment.detect()
    if on_slurm:
        try:
            # Requeueing is Preemption's: Lightning's own saves inside the signal handler.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        except RuntimeError:
            raise UsageError("SLURM: give --nodes and --ntasks-per-node instead of --ntasks") from None
    for callback in options["callbacks"]:
        if isinstance(callback, LearningRateFinder):
            raise UsageError(
                "trainer.callbacks: the learning rate of each step follows model.schedule, so that LearningRateFinder "
                "has none to set: leave it out, and say --find=lr"
            )
    options = options | {"plugins": plugins, "profiler": options["profiler"] or NoProfiler()}
    try:
        trainer = kind(**options)
    except (MisconfigurationException, ModuleNotFoundError) as error:
        told = " ".join(str(error).split())
        if "No supported gpu backend" in told:
            told = (
                "this machine has no GPU that PyTorch can use: leave out gpu.yaml, or give --trainer.accelerator=auto"
            )
        raise UsageError(f"trainer: {told}") from None
    except KeyError as error:
        if "SLURM_" not in str(error):
            raise
        raise UsageError("SLURM: start it by srun; the shell of salloc is none of the job's tasks") from None
    leave_signals_alone(trainer)
    # `Liveness`, which can tell whom they wait for, comes before the processes' own timeout.
    wait_at_most(trainer, timedelta(minutes=timeout, seconds=30))
    if options["sync_batchnorm"] and trainer.world_size > 1 and isinstance(trainer.accelerator, CPUAccelerator):
        raise UsageError(
            f"PyTorch synchronises batch norms on GPUs only, and these {trainer.world_size} processes run on CPUs: "
            "give --trainer.sync_batchnorm=false (each then has norms of its own share of a batch), or one process"
        )
    # Without this check the processes would wait for others that nobody starts. The batch shell runs one process.
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    nodes, devices = trainer.num_nodes, trainer.num_devices
    if on_slurm and nodes * devices != started:
        raise UsageError(
            f"the trainer wants {nodes} nodes x {devices} devices, but SLURM started {started} tasks: "
            f"use srun --nodes={nodes} --ntasks-per-node={devices}"
        )
    return trainer


def standard_callbacks(
    seed: int | None, checkpoints: Checkpoints, model: LightningModule, given: list[Callback]
) -> list[Callback]:
    """The callbacks of every run, in the order that they rely on: checkpoints are taken last.

    Args:
        seed: the run's seed; None leaves random generators alone.
        checkpoints: when a checkpoint is taken.
        model: the task, which has its reports.
        given: callbacks of the config; a report among them takes the place of the one that every run has.
    """
    reports = [kind() for kind in reports_of(type(model)) if not any(isinstance(each, kind) for each in given)]
    return [StepSeed(seed), NonFiniteGuard(), Preemption(), Monitored(), *reports, checkpoints]


def place_reports(trainer: Trainer, place: Place) -> None:
    """Tells all reports of a run, and what else writes files, where they put what they make."""
    stay_inside(trainer, place.files)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Report):
            callback.place = place
