"""Stopping on Ctrl-C, SIGTERM or SIGUSR1: the signal sets a flag, the checkpoint is taken between steps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from lightning_modules.internals import longest_wait

EXIT_CODE = 75  # EX_TEMPFAIL: "saved; run the same command again"

# What a process may have received. The processes agree on the largest index that any of them has.
SIGNALS = (None, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """Raised on every process, at the same step, once the checkpoint of a requested stop is written.

    Args:
        code: the process's exit code.
        received: the signal that asked for it.
        step: optimiser steps that were done.
        saved: whether a checkpoint holds all of them.
    """

    def __init__(self, code: int, received: signal.Signals, step: int, saved: bool) -> None:
        super().__init__(code)
        self.signal, self.step, self.saved = received, step, saved


class Preemption(Callback):
    """Turns Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 into a stop at the next step after which a checkpoint can be taken.

    A signal that the process ignores stays ignored: Ctrl-C reaches all processes of a terminal's job, and is the main
    one's to hear.

    The processes agree on the step: each step starts a one-byte reduction between their hosts, whose outcome is read
    a step later, so that neither the device nor the network is waited for. On SLURM, SIGUSR1 (`#SBATCH
    --signal=SIGUSR1@90`) also puts the job back into the queue.
    """

    logs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.decided: signal.Signals | None = None
        self._group: Any = None
        self._flag: torch.Tensor | None = None
        self._work: Any = None
        self._previous: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens from the first batch on, and opens a channel between the hosts if there are several processes."""
        self._listen()
        if trainer.world_size > 1 and dist.is_initialized() and self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=longest_wait(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens, where there was no sanity check."""
        self.on_sanity_check_start(trainer, pl_module)

    def _listen(self) -> None:
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in filter(None, SIGNALS):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._previous)  # one that came during the start is heard now

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)

    def agreed(self, trainer: Trainer) -> bool:
        """Whether all processes stop here; every process must ask at the same steps and gets the same answer."""
        if self._group is None:
            self.decided = self.received
            return self.decided is not None
        if self._work is not None:
            self._work.wait()
            assert self._flag is not None
            self.decided = SIGNALS[int(self._flag)]  # lies in host memory
        self._flag = torch.tensor(SIGNALS.index(self.received), dtype=torch.uint8)
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return self.decided is not None

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stops in the middle of a validation at once: its epoch's last checkpoint resumes before it."""
        if self._group is None and trainer.state.fn == "fit" and self.agreed(trainer):
            self.stop(trainer, saved=trainer.sanity_checking)

    @staticmethod
    def stop(trainer: Trainer, saved: bool = True) -> None:
        """Ends the run; with SIGUSR1 on SLURM, requeues the job.

        Args:
            trainer: of the run.
            saved: whether a checkpoint holds all that was done.

        Raises:
            Preempted: always, with `EXIT_CODE`.
        """
        decided = signal.SIGTERM
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Preemption):
                decided = callback.decided or decided
                callback._requeue(trainer)
                if "SLURM_JOB_ID" in os.environ:
                    # The first task to end has SLURM terminate the others, which are about to end with the same code. A
                    # mask would not do, for other threads do not have it.
                    for number in callback._previous:
                        signal.signal(number, signal.SIG_IGN)
        # Lightning's launcher kills the job when a process that it started fails; those end in peace, and the main
        # process tells the code.
        environment = getattr(trainer.strategy, "cluster_environment", None)
        started_by_main = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        raise Preempted(0 if started_by_main else EXIT_CODE, decided, trainer.global_step, saved)

    def _requeue(self, trainer: Trainer) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        if not job or self.decided != signal.SIGUSR1:
            return
        if trainer.is_global_zero:
            try:
                asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
                problem = asked.stderr.strip() if asked.returncode else None
            except OSError as error:
                problem = str(error)
            if problem:
                print(f"exp: the checkpoint is saved, but job {job} was not requeued: {problem}", file=sys.stderr)
        if self._group is not None:
            # The first process to end with a code other than 0 ends the step: not before the job is requeued.
            dist.barrier(self._group)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back to who had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous = {}
