"""No job waits without a word for a process that does not come back: it is named, and the job ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

# Seconds between two signs of life.
INTERVAL = 1.0
# How long, in seconds, a process may be silent in a job that has been asked to stop.
PATIENCE = 30.0
# The last word of a process that is done.
LEFT = b"left"


class Liveness(Callback):
    """Has each process of a job say that it lives, and ends the job when one has been silent for too long.

    The first process listens to all others, and these listen to the first. A process speaks from a thread, through a
    store of their own, so that one that computes for long is not taken for one that is stopped or unreachable.

    Args:
        timeout: minutes of silence.
        stopping: whether this process has been asked to stop; then it has less patience.
        ended: called with what there is to say, from a thread, in place of a way back: the process waits for another.
    """

    logs: tuple[str, ...] = ()

    def __init__(self, timeout: float, stopping: Callable[[], bool], ended: Callable[[str], None]) -> None:
        self.timeout, self.stopping, self.ended = timeout, stopping, ended
        self._pulse: Pulse | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or not dist.is_initialized() or self._pulse is not None:
            return
        host = os.environ["MASTER_ADDR"]
        store: Any = None
        if trainer.is_global_zero:
            store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        port = trainer.strategy.broadcast(store.port if store is not None else 0)
        self._pulse = Pulse(
            lambda: store or dist.TCPStore(host, port, wait_for_workers=False), trainer.global_rank, trainer.world_size
        )
        threading.Thread(target=self._watch, args=(self._pulse,), name="liveness", daemon=True).start()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._pulse is not None:
            self._pulse.leave()
            self._pulse = None

    def missed(self) -> str:
        """Whom this process has waited for in vain, as far as it can tell."""
        ranks = self._pulse.behind() if self._pulse is not None else []
        who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "another process"
        return f"{who} did not come to where the others waited within {self.timeout:g} minutes"

    def _count(self, *args: Any, **kwargs: Any) -> None:
        if self._pulse is not None:
            self._pulse.batches += 1

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = _count
    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _count

    def _watch(self, pulse: Pulse) -> None:
        while not pulse.left.wait(INTERVAL):
            pulse.tick()
            stopping = self.stopping()
            limit = min(PATIENCE, self.timeout * 60) if stopping else self.timeout * 60
            if silent := pulse.silent(limit):
                ranks = ", ".join(map(str, silent))
                time_passed = f"{limit:.0f} seconds" if limit < 120 else f"{limit / 60:g} minutes"
                self.ended(f"rank{'s' * (len(silent) > 1)} {ranks} gave no sign of life for {time_passed}")


class Pulse:
    """Signs of life of the processes of a job.

    Silence is counted in ticks of the listener, not by a clock: one that was itself stopped has not listened.

    Args:
        connect: returns the store by which the processes hear of each other.
        rank: this process.
        size: number of processes.
    """

    def __init__(self, connect: Callable[[], Any], rank: int, size: int) -> None:
        self._connect, self.rank, self.size = connect, rank, size
        self._others = range(1, size) if rank == 0 else range(1)
        # Ticks since each was heard last; one that has never spoken may still have to find the way.
        self._silence: dict[int, int] = {}
        self._said: dict[int, bytes] = {}
        # Starts and ends of batches.
        self.batches = 0
        self._lock = threading.Lock()
        self.left = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="pulse", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Says that from now on silence means nothing."""
        self.left.set()
        self._thread.join(2 * INTERVAL)

    def tick(self) -> None:
        """Counts an interval in which others may have been heard."""
        with self._lock:
            for other in self._silence:
                self._silence[other] += 1

    def silent(self, seconds: float) -> list[int]:
        """Ranks that have not been heard for some seconds."""
        with self._lock:
            return [other for other, ticks in self._silence.items() if ticks * INTERVAL > seconds]

    def behind(self) -> list[int]:
        """Ranks that have come less far than this process, or the other one of two."""
        with self._lock:
            far = {other: int(said.split()[1]) for other, said in self._said.items()}
        return [other for other in far if far[other] < self.batches] or ([*far] if self.size == 2 else [])

    def _speak(self) -> None:
        beat = 0
        try:
            store = self._connect()
            while not self.left.is_set():
                beat += 1
                store.set(str(self.rank), f"{beat} {self.batches}")
                for other in self._others:
                    if store.check([str(other)]):
                        self._hear(other, store.get(str(other)))
                self.left.wait(INTERVAL)
            store.set(str(self.rank), LEFT.decode())
        except dist.DistError:
            # Whoever keeps the store has ended, or is not to be reached: from now on it is silent.
            return

    def _hear(self, other: int, said: bytes) -> None:
        with self._lock:
            if said == LEFT:
                self._silence.pop(other, None)
            elif said != self._said.get(other):
                self._said[other], self._silence[other] = said, 0
