"""The other processes of a search on this machine: the same command, each on cores of its own."""

from __future__ import annotations

import os
from pathlib import Path

import threadpoolctl
import torch

from exp.claims.executors import last_error, shares
from exp.claims.fork_server import ForkServer, Start

# Tells a process that it helps another one of the same command.
HELPS = "EXP_SEARCH_HELPS"


def helps() -> bool:
    """Whether this process evaluates candidates for another one."""
    return HELPS in os.environ


class Helpers:
    """Processes that evaluate candidates beside this one; they end when it does, however it does.

    Made before anything is computed here, as they are copies of a process that has not computed.

    Args:
        jobs: How many processes there are with this one.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._server = ForkServer(tracked=False) if jobs > 1 else None
        self._running: dict[int, Path] = {}

    def start(self, argv: list[str], threads: int, logs: Path) -> None:
        """Starts them, and keeps this process to its own share of the machine.

        Args:
            argv: What follows the command's name.
            threads: Of each process.
            logs: The folder that what they print goes to.
        """
        if self._server is None:
            return
        parts = shares(self._jobs)
        logs.mkdir(parents=True, exist_ok=True)
        for number, share in enumerate(parts[1:], 1):
            environment = dict(os.environ) | {HELPS: "1", "OMP_NUM_THREADS": str(threads)}
            if share.gpus is not None:
                environment["CUDA_VISIBLE_DEVICES"] = share.gpus
            log = logs / f"helper_{number}.log"
            log.unlink(missing_ok=True)
            started = Start(argv, str(log), environment, threads, share.cores, "search")
            self._running[self._server.start(started)] = log
        if parts[0].cores is not None:
            os.sched_setaffinity(0, parts[0].cores)

    def close(self) -> str | None:
        """Ends them; returns what one that failed has said, if one has."""
        if self._server is None:
            return None
        failed = [self._running[pid] for pid, code in self._server.ended() if code]
        self._server.close()
        return next((f"{log}: {last_error(log)}" for log in failed), None)


def use_threads(number: int) -> None:
    """Has the libraries compute on so many threads."""
    threadpoolctl.threadpool_limits(number)
    torch.set_num_threads(number)
