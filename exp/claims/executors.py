"""Where cells run: in processes on this machine, or as jobs on a SLURM cluster (`exp.claims.slurm`)."""

from __future__ import annotations

import os
import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from exp.claims.cells import Cell
from exp.claims.claim_file import ClaimError
from exp.claims.fork_server import ForkServer, ServerLost, Start

# A cell that is told to stop saves a checkpoint between two steps.
PATIENCE = 120.0
STOPPED = 75
_CAN_PIN = hasattr(os, "sched_setaffinity")
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


@dataclass(frozen=True)
class Share:
    """What a cell has of this machine.

    Args:
        threads: of each of its processes, as long as its config names no other number.
        cores: that it runs on; None: all.
        gpus: that it sees; None: all.
    """

    threads: int
    cores: list[int] | None
    gpus: str | None


class Local(Executor):
    """Processes on this machine; they end when this process does, however it does.

    Args:
        jobs: how many run at a time. Each has cores and GPUs of its own, as far as there are enough.
        environment: variables that every process gets.
        tracked: whether cells have W&B runs.
    """

    def __init__(self, jobs: int, environment: dict[str, str], tracked: bool) -> None:
        self.jobs = jobs
        self.environment = environment
        self._running: dict[int, tuple[Cell, int]] = {}
        # First, for the number of GPUs may be asked of their driver, which survives no fork.
        self._server = ForkServer(tracked)
        self._shares = shares(jobs)

    def room(self) -> int:
        """Free slots."""
        return self.jobs - len(self._running)

    def start(self, cell: Cell) -> None:
        """Runs what `python -m exp fit` does, with its output in the cell's log."""
        slot = min(set(range(self.jobs)) - set(self._running))
        share = self._shares[slot]
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        given = {"OMP_NUM_THREADS": str(share.threads)}
        if share.gpus is not None:
            given["CUDA_VISIBLE_DEVICES"] = share.gpus
        # What the user has set wins.
        environment = {**given, **os.environ, **self.environment}
        threads = None if "OMP_NUM_THREADS" in os.environ else share.threads
        fit = Start(cell.command, str(cell.log), environment, threads, share.cores)
        cell.begins()
        with _server_at_work():
            self._running[slot] = (cell, self._server.start(fit))

    def ended(self) -> list[tuple[Cell, str | None]]:
        """Asks how processes have ended."""
        found: list[tuple[Cell, str | None]] = []
        with _server_at_work():
            codes = dict(self._server.ended())
        for slot, (cell, process) in list(self._running.items()):
            if process in codes:
                del self._running[slot]
                cell.ends()
                found.append((cell, problem(codes[process], cell.log)))
        return found

    def stop(self) -> None:
        """Lets every cell save and end; ends those that do not."""
        waiting = {process: cell for cell, process in self._running.values()}
        for process in waiting:
            # It may have ended since it was asked for.
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        # Without the server there are no cells either.
        with suppress(ServerLost):
            while waiting and time.monotonic() < end:
                for process, _ in self._server.ended():
                    if cell := waiting.pop(process, None):
                        cell.ends()
                time.sleep(0.05)
        for process, left in waiting.items():
            left.ends()
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        self._server.close()


@contextmanager
def _server_at_work() -> Iterator[None]:
    try:
        yield
    except ServerLost:
        raise ClaimError(
            "the process that starts the cells was killed, and the running cells with it; the same command goes on"
        ) from None


def shares(jobs: int) -> list[Share]:
    """What each of several jobs at a time has of this machine.

    Cores that share a cache or a memory stay together; where there are fewer cores than jobs, nobody has one of their
    own. All have the same number of threads, on which the last digits of their results depend.
    """
    cores = _cores()
    each = len(cores) // jobs
    gpus = [str(i) for i in range(torch.cuda.device_count())]
    return [
        Share(
            threads=max(1, each),
            cores=cores[slot * each : (slot + 1) * each] if jobs > 1 and each and _CAN_PIN else None,
            gpus=",".join(gpus[slot::jobs] or [gpus[slot % len(gpus)]]) if len(gpus) > 1 else None,
        )
        for slot in range(jobs)
    ]


def _cores() -> list[int]:
    """The cores that this process may run on; those that are threads of one core, and those of one chip, in a row."""
    if not _CAN_PIN:
        return list(range(os.cpu_count() or 1))

    def place(core: int) -> tuple[int, ...]:
        topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
        try:
            return *(int((topology / name).read_text()) for name in ("physical_package_id", "core_id")), core
        except (OSError, ValueError):
            return 0, core, core

    return sorted(os.sched_getaffinity(0), key=place)


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
