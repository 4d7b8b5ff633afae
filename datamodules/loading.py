"""Samples loaded by key, and the loader that can stop and go on anywhere."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import cv2
import torch
from albumentations.augmentations.crops.transforms import CropSizeError
from torch.utils.data import DataLoader

from datamodules.batches import EvalBatches, Key, SideBySide, TrainBatches
from datamodules.errors import BadSample, DataError
from datamodules.finding import shown
from datamodules.splits import Source
from datamodules.transforms.pipeline import Augmentation

Batch = dict[str, Any]

# A whole process group is signalled when a job is preempted. The main process wants to finish its step and save, which
# it cannot when its workers are gone.
WORKER_BLOCKED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Samples:
    """Loads and augments samples by key, in a worker or in the main process alike.

    Args:
        source: The data set.
        pipeline: Augmentation, a function of (seed, epoch, index).
        substitute: Whether a bad sample is replaced by the next readable one instead of being left out.
    """

    def __init__(self, source: Source, pipeline: Augmentation, substitute: bool) -> None:
        self.source, self.pipeline, self.substitute = source, pipeline, substitute

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[Key]) -> list[Batch | BadSample]:
        loaded: list[Batch | BadSample] = []
        for epoch, index in keys:
            outcome = self._load(epoch, index)
            loaded.append(outcome)
            if not self.substitute:
                continue
            for step in range(1, len(self)):
                if not (isinstance(outcome, BadSample) and outcome.skippable):
                    break
                outcome = self._load(epoch, (index + step) % len(self))
                loaded.append(outcome)
        return loaded

    def _load(self, epoch: int, index: int) -> Batch | BadSample:
        label = None
        try:
            sample = self.source.load(index)
            label = sample.get("label")
            return self.pipeline(sample, epoch, index) | {"index": index}
        except DataError as problem:
            return BadSample(index, shown(self.source.name(index)), str(problem), label)
        except CropSizeError as problem:
            reason = f"a crop is larger than the image: crop the image smaller, or resize it first ({problem})"
            return BadSample(index, shown(self.source.name(index)), reason, label, skippable=False)
        except Exception:
            reason = f"the transforms failed on this sample:\n{traceback.format_exc()}"
            return BadSample(index, shown(self.source.name(index)), reason, label, skippable=False)


class Streams:
    """Samples of several streams, loaded side by side.

    Args:
        streams: Samples of each, by name.
    """

    def __init__(self, streams: dict[str, Samples]) -> None:
        self.streams = streams

    def __getitems__(self, keys: dict[str, list[Key]]) -> dict[str, list[Batch | BadSample]]:
        return {name: self.streams[name].__getitems__(own) for name, own in keys.items()}


class _Collate:
    """Joins what loaded and hands on what did not; an unequal batch is a message too, not a worker's traceback."""

    def __init__(self, join: Callable[[list[Batch]], Batch]) -> None:
        self.join = join

    def __call__(
        self, loaded: list[Batch | BadSample] | dict[str, list[Batch | BadSample]]
    ) -> tuple[Batch | str | None, list[BadSample]]:
        if isinstance(loaded, list):
            return self._joined(loaded)
        joined = {name: self._joined(own) for name, own in loaded.items()}
        batch = {name: part for name, (part, _) in joined.items()}
        incomplete = [part for part in batch.values() if not isinstance(part, dict)]
        return incomplete[0] if incomplete else batch, [sample for _, bad in joined.values() for sample in bad]

    def _joined(self, loaded: list[Batch | BadSample]) -> tuple[Batch | str | None, list[BadSample]]:
        samples = [sample for sample in loaded if not isinstance(sample, BadSample)]
        bad = [sample for sample in loaded if isinstance(sample, BadSample)]
        try:
            return (self.join(samples) if samples else None), bad
        except DataError as problem:
            return str(problem), bad


class _Cursor:
    """The batch sampler that torch's loader asks: it points where the next iteration starts."""

    def __init__(self, batches: TrainBatches | SideBySide | EvalBatches) -> None:
        self.batches, self.epoch, self.samples = batches, 0, 0

    def __iter__(self) -> Iterator[Any]:
        return self.batches.keys(self.epoch, self.samples)

    def __len__(self) -> int:
        return len(self.batches)


class Loader:
    """A loader of batches that Lightning can save and restore to the sample.

    It holds a torch ``DataLoader`` and is not one, because Lightning takes ``DataLoader``s apart and rebuilds them
    with samplers of its own (for prediction, and on several devices).

    Args:
        samples: Where samples come from.
        batches: Which batches this process loads.
        join: Makes a batch of samples.
        report: Called in the main process with the bad samples of each batch; raises if they are too many.
        position: Epoch and batches consumed in it, as the trainer counts them; None without one.
        num_workers: Worker processes; 0 loads in the main process.
        pin_memory: Whether batches are put in page-locked memory.

    Attributes:
        begin: Called with the epoch before the first batch of it, or of the rest of it, is loaded.
    """

    def __init__(
        self,
        samples: Samples | Streams,
        batches: TrainBatches | SideBySide | EvalBatches,
        join: Callable[[list[Batch]], Batch],
        report: Callable[[list[BadSample]], None],
        position: Callable[[], tuple[int, int] | None],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches, self.report, self.position = batches, report, position
        self.begin: Callable[[int], None] | None = None
        self.num_workers = num_workers
        self._cursor = _Cursor(batches)
        self._running: int | None = None
        self._loader: DataLoader = DataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=self._cursor,
            collate_fn=_Collate(join),
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # An iterator draws a seed when it is made. From the default generator, that would change the run.
            generator=torch.Generator(),
            multiprocessing_context=_worker_context() if num_workers else None,
            worker_init_fn=_start_worker,
        )
        # Holding torch's loader, this keeps the queues open until the workers have been told; collected together with
        # them, the workers would not hear of it.
        self._end_workers = weakref.finalize(self, _shut_down, self._loader)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def sampler(self) -> Loader:
        """Where Lightning looks for ``set_epoch``."""
        return self

    @property
    def batch_sampler(self) -> _Cursor:
        """Where Lightning looks whether the samples of an evaluation are shuffled."""
        return self._cursor

    def set_epoch(self, epoch: int) -> None:
        """Moves to the start of an epoch, unless the loader is in it already (as it is after a restart).

        Under a trainer, the trainer's own count decides: what Lightning passes here is one too many ever after a
        restart from the end of an epoch with ``max_steps``.
        """
        counted = self.position()
        epoch = epoch if counted is None else counted[0]
        if epoch != self._cursor.epoch:
            self._cursor.epoch, self._cursor.samples = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Epoch and samples consumed in it by all processes, of the first stream where there are several.

        Raises:
            DataError: If there is no trainer to ask: a loader only knows how far it has read ahead.
        """
        counted = self.position()
        if counted is None:
            raise DataError("The position of a training loader is its trainer's; there is none.")
        epoch, samples = counted[0], counted[1] * self.batches.batch_size
        if epoch != self._running:
            # Between epochs, or restarted and not read from yet: the trainer's count is still the last epoch's.
            samples = self._cursor.samples if epoch == self._cursor.epoch else 0
        return {"epoch": epoch, "samples": samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration start where ``state`` was taken."""
        self._cursor.epoch, self._cursor.samples, self._running = state["epoch"], state["samples"], None

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the present position on."""
        # A generator, so that the position is read at the first batch: Lightning asks for the iterator first and sets
        # the epoch afterwards.
        if self.begin is not None:
            self.begin(self._cursor.epoch)
        iterator = self._iterate()
        self._running, self._cursor.samples = self._cursor.epoch, 0
        for batch, bad in iterator:
            if bad:
                self.report(bad)
            if isinstance(batch, str):
                raise DataError(batch)
            if batch is not None:
                yield batch

    def _iterate(self) -> Iterator[tuple[Batch | str | None, list[BadSample]]]:
        if self.num_workers == 0:
            return iter(self._loader)
        fresh = self._loader._iterator is None
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, WORKER_BLOCKED_SIGNALS)
        try:
            # Once for Python's resource tracker, which leaves SIGTERM and SIGINT unblocked when it starts, and once for
            # the fork server, from which the workers inherit what is blocked.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, WORKER_BLOCKED_SIGNALS)
            iterator = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if fresh:
            # Before torch's own exit hook, which is registered with the worker and waits 5 seconds for each.
            atexit.register(self._end_workers)
        return iterator

    @property
    def _iterator(self) -> Any:
        """Lightning ends the workers of whatever has this attribute."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: None) -> None:
        _shut_down(self._loader)


def _worker_context() -> Any:
    # Forking a process that has threads (torch's, OpenCV's, the logger's) can copy a lock that nobody will release.
    # The fork server is a clean process without threads; what it has imported, its workers share.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "albumentations", "datamodules"])
    return context


def _start_worker(worker_id: int) -> None:
    cv2.setNumThreads(1)
    # When the main process is killed, nobody tells its workers: they wait for the fork server's end, and it for theirs.
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _shut_down(loader: DataLoader) -> None:
    iterator, loader._iterator = loader._iterator, None
    if iterator is not None:
        iterator._shutdown_workers()  # type: ignore[attr-defined]
        for worker in iterator._workers:  # type: ignore[attr-defined]
            # They do not hear SIGTERM, which is torch's last resort.
            worker.kill()
