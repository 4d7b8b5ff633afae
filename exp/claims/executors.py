"""Where cells run: in processes on this machine, or as jobs on a SLURM cluster (`exp.claims.slurm`)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

import torch

from exp.claims.cells import Cell
from exp.processes import die_with_parent

# A cell that is told to stop saves a checkpoint between two steps.
PATIENCE = 120.0
STOPPED = 75
_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")


class Executor(ABC):
    """Starts cells and tells when they have ended."""

    @abstractmethod
    def room(self) -> int:
        """How many more cells it would start now."""

    @abstractmethod
    def start(self, cell: Cell) -> None:
        """Starts a cell."""

    @abstractmethod
    def ended(self) -> list[tuple[Cell, str | None]]:
        """The cells that have ended since the last call, each with what went wrong, if anything did."""

    @abstractmethod
    def stop(self) -> None:
        """Ends what this command would otherwise leave behind."""


class Local(Executor):
    """Processes on this machine; they end when this process does, however it does.

    Args:
        jobs: how many run at a time. Each gets its share of the processor's cores and of the visible GPUs.
        environment: variables that every process gets.
    """

    def __init__(self, jobs: int, environment: dict[str, str]) -> None:
        self.jobs = jobs
        self.environment = environment
        self._running: dict[int, tuple[Cell, subprocess.Popen[bytes]]] = {}
        self._shares = _shares(jobs)

    def room(self) -> int:
        """Free slots."""
        return self.jobs - len(self._running)

    def start(self, cell: Cell) -> None:
        """Runs `python -m exp fit` with its output in the cell's log."""
        slot = min(set(range(self.jobs)) - set(self._running))
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        with cell.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "exp", "fit", *cell.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._shares[slot], **os.environ, **self.environment},
                # Ctrl-C reaches this process alone, which then lets the cells save what they have.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._running[slot] = (cell, process)

    def ended(self) -> list[tuple[Cell, str | None]]:
        """Polls the processes."""
        found: list[tuple[Cell, str | None]] = []
        for slot, (cell, process) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[slot]
                found.append((cell, problem(code, cell.log)))
        return found

    def stop(self) -> None:
        """Lets every cell save and end; ends those that do not."""
        processes = [process for _, process in self._running.values()]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        for process in processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _shares(jobs: int) -> list[dict[str, str]]:
    """Each slot's threads and GPUs, as environment variables; what the user has set wins."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    gpus = [str(i) for i in range(torch.cuda.device_count())]
    shares = []
    for slot in range(jobs):
        share = {"OMP_NUM_THREADS": threads}
        if len(gpus) > 1:
            share["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot::jobs] or [gpus[slot % len(gpus)]])
        shares.append(share)
    return shares


def problem(code: int, log: Path) -> str | None:
    """What a fit's exit code means, with the last error of its log; None if it finished."""
    if code == 0:
        return None
    if code == STOPPED:
        return "was stopped by a signal; run the same command again to go on"
    if code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name}); see {log}"
    return last_error(log) or f"ended with code {code}; see {log}"


def last_error(log: Path) -> str:
    """What went wrong in a fit, by its log: exp's own message, else the error that came first, else the last line."""
    try:
        lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return ""
    messages = [line.removeprefix("exp: ") for line in lines if line.startswith("exp: ")]
    # When one process of several fails, the others fail after it.
    errors = [line for line in lines if _ERROR.match(line)]
    told = [message for message in messages if not message.startswith("the process of rank")]
    return next(iter([*told[-1:], *errors[:1], *messages[-1:], *lines[-1:]]), "")
