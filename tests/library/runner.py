"""Runs commands in a forked copy of this process, which may be sabotaged and killed without harm to the tests."""

from __future__ import annotations

import io
import multiprocessing.forkserver
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import exp.fit
import exp.predict  # noqa: F401
from callbacks.reports import reports_of
from drawing.figures import learning_curve
from lightning_modules import Task

# What every copy would find for itself: the reports that there are, and the fonts of figures.
reports_of(Task)
learning_curve({"loss": {"train": ([0, 1], [1.0, 0.5])}}, "fonts").savefig(io.BytesIO())
# Seconds for what takes a few on a machine that has nothing else to do.
PATIENCE = 240.0

SMALL = [
    "--trainer.max_epochs=3",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=2",
    "--model=Classification",
    "--model.network=models.classifiers.timm_classifier",
    "--model.network.name=convnext_atto",
    "--model.network.num_classes=10",
    "--model.network.drop_path_rate=0.2",
    "--model.network.options={patch_size: 1, depths: [1, 1, 1, 1], dims: [4, 8, 8, 8], kernel_sizes: 3}",
    "--model.optimizer=torch.optim.AdamW",
    "--model.optimizer.lr=0.01",
    "--model.schedule=WarmupCosine",
    "--model.schedule.warmup_epochs=1",
    "--data=Digits",
    "--data.batch_size=128",
    "--checkpoint.every_n_steps=2",
    "--test=false",
    "--wandb=disabled",
]


@dataclass
class Ended:
    """How a command ended: its exit code (negative: killed by that signal) and what it printed."""

    code: int
    output: str


def run(command: str, argv: list[str], folder: Path, sabotage: Callable[[], None] | None = None) -> Ended:
    """Runs `python -m exp COMMAND ARGV` in a forked process whose working directory is `folder`."""
    log = folder / "output.txt"

    def prepare() -> None:
        os.chdir(folder)
        write_to(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        if sabotage is not None:
            sabotage()

    _, status = os.waitpid(fork([command, *argv], prepare), 0)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text())


def fork(argv: list[str], prepare: Callable[[], None]) -> int:
    """Runs `python -m exp ARGV`, after `prepare`, in a forked copy of this process; returns its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        prepare()
        torch.set_num_threads(1)
        # A fork server that other tests have started is not this process's child and cannot be asked for workers.
        server = multiprocessing.forkserver._forkserver
        server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
        from exp.__main__ import main

        code = main(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def write_to(descriptor: int) -> None:
    """Lets this process print there."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)


def die() -> None:
    """Ends this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
