"""Cells as SLURM jobs, submitted through submitit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from exp.claims.cells import Cell
from exp.claims.executors import STOPPED, Executor, last_error

# How long the other tasks of a job wait for the requeueing that follows their common stop.
REQUEUE_PATIENCE = 600.0


class SlurmError(RuntimeError):
    """Jobs cannot be submitted; the message says what is missing or wrong."""


class Slurm(Executor):
    """One job a cell, with as many nodes and tasks as its trainer wants.

    Jobs outlive this command: run again, it finds those that it has submitted. A job that is about to reach its time
    limit, or is preempted, saves, is requeued and goes on.

    Args:
        folder: on a file system that all nodes see; for job scripts and logs.
        jobs: how many are submitted at a time; None submits all.
        options: sbatch options, such as `time` (minutes), `partition`, `gres`, `cpus_per_task`.
        environment: variables that every job gets.
    """

    def __init__(self, folder: Path, jobs: int | None, options: dict[str, Any], environment: dict[str, str]) -> None:
        try:
            import submitit
        except ModuleNotFoundError:
            raise SlurmError("--executor slurm needs submitit: pip install 'exp[slurm]'") from None
        self.jobs = jobs
        self.environment = environment
        try:
            self._executor = submitit.SlurmExecutor(folder=folder)
            self._executor.update_parameters(
                **{"time": 60, "signal_delay_s": 90, "srun_args": ["--kill-on-bad-exit=1"], **options}
            )
        except (RuntimeError, ValueError) as error:
            raise SlurmError(" ".join(str(error).split())) from error
        self._folder = folder
        self._job = submitit.SlurmJob
        self._running: list[tuple[Cell, Any]] = []
        self._asked = 0.0
        self._queued: set[str] = set()

    def room(self) -> int:
        """As many as are left, or as `jobs` allows."""
        return sys.maxsize if self.jobs is None else self.jobs - len(self._running)

    def start(self, cell: Cell) -> None:
        """Submits a job, unless the one of an earlier command still waits or runs."""
        earlier = cell.recorded().get("job")
        if earlier and earlier in self._queue(now=True):
            self._running.append((cell, self._job(folder=self._folder, job_id=earlier)))
            return
        trainer = cell.config["trainer"]
        # A number, or what names one process a device, such as `auto`.
        devices = str(trainer.get("devices", 1))
        self._executor.update_parameters(
            job_name=f"{cell.arm.name}-seed{cell.seed}",
            nodes=int(trainer.get("num_nodes") or 1),
            ntasks_per_node=int(devices) if devices.isdigit() else 1,
        )
        try:
            job = self._executor.submit(Fit(cell.command, str(cell.log), self.environment))
        except Exception as error:
            raise SlurmError(f"{cell.name} could not be submitted: {' '.join(str(error).split())}") from error
        cell.note(job=job.job_id)
        self._queued.add(job.job_id)
        self._running.append((cell, job))

    def ended(self) -> list[tuple[Cell, str | None]]:
        """Asks the queue, at most every two seconds."""
        queued = self._queue()
        found: list[tuple[Cell, str | None]] = []
        for cell, job in list(self._running):
            if job.job_id in queued:
                continue
            self._running.remove((cell, job))
            cell.look()
            if cell.state == "finished":
                found.append((cell, None))
            else:
                reason = last_error(cell.log) or last_error(Path(job.paths.stderr)) or "it ended without a word"
                found.append((cell, f"job {job.job_id}: {reason}"))
        return found

    def stop(self) -> None:
        """Leaves the jobs to the cluster."""

    def _queue(self, now: bool = False) -> set[str]:
        """The ids of this user's jobs that wait or run; squeue knows them without an accounting database."""
        if now or time.monotonic() - self._asked > 2:
            self._asked = time.monotonic()
            command = ["squeue", "--me", "--noheader", "--format=%A"]
            asked = subprocess.run(command, capture_output=True, text=True)
            if asked.returncode == 0:
                self._queued = set(asked.stdout.split())
        return self._queued


class Fit:
    """What every task of a job runs: `python -m exp fit`, and a stop that saves when the job must leave.

    Args:
        command: what follows `fit`.
        log: where it prints.
        environment: variables that it gets.
    """

    def __init__(self, command: list[str], log: str, environment: dict[str, str]) -> None:
        self.command = command
        self.log = log
        self.environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Runs the fit to its end.

        Raises:
            RuntimeError: it did not finish.
        """
        Path(self.log).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "exp", "fit", *self.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                preexec_fn=_ignore_preemption_signal,
            )
        # Not `wait()`: it would hold a lock that `checkpoint`, called in the midst of it, needs.
        while (code := self._process.poll()) is None:
            time.sleep(0.5)
        if code == STOPPED and os.environ.get("SLURM_PROCID", "0") != "0":
            # All tasks stop together; the first one has the job requeued, which ends this wait.
            time.sleep(REQUEUE_PATIENCE)
        if code:
            raise RuntimeError(f"exp fit ended with code {code}")

    def checkpoint(self) -> Any:
        """What submitit calls before a job is requeued: lets the fit save, and asks for the same command again."""
        import submitit

        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGTERM)
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Fit(self.command, self.log, self.environment))


def _ignore_preemption_signal() -> None:
    # SLURM sends it to every process of the job; only submitit's is to act on it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
