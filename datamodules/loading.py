"""Which samples a process loads, in which order, and the loader that can stop and go on anywhere.

Sample order is a function of (seed, epoch) and a batch is a slice of it, so that the same configuration trains on the
same batches whatever the number of processes, workers or interruptions.
"""

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
import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.errors import BadSample, DataError
from datamodules.ordering import by_group, permutation
from datamodules.splits import Source
from datamodules.transforms.pipeline import Pipeline

Key = tuple[int, int]
Batch = dict[str, Any]

# A whole process group is signalled when a job is preempted. The main process wants to finish its step and save, which
# it cannot when its workers are gone.
WORKER_BLOCKED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class TrainBatches:
    """Training batches of one process: an epoch is a whole number of optimiser steps, the surplus is left out.

    Args:
        num_samples: Samples in the split.
        batch_size: Samples of one batch over all processes.
        accumulate: Batches of one optimiser step.
        seed: Run's seed.
        rank: This process.
        world_size: Number of processes.
        groups: Group of each sample, int64 [num_samples], if a batch (over all processes) shall take its samples from
            one group. What does not fill a batch of its group is left out of the epoch.

    Raises:
        DataError: If the batch cannot be shared equally, or there are fewer samples than one step takes.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        groups: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise DataError(
                f"batch_size={batch_size} counts the samples of one batch over all processes and cannot be shared "
                f"equally by {world_size} of them. Use a multiple of {world_size}."
            )
        full = num_samples // batch_size if groups is None else int((np.bincount(groups) // batch_size).sum())
        if full < accumulate:
            grouped = "" if groups is None else " of one group"
            raise DataError(
                f"{num_samples} training samples are fewer than one optimiser step takes ({batch_size}{grouped} x "
                f"{accumulate} accumulated batches). Lower batch_size or accumulate_grad_batches."
            )
        self.num_samples, self.batch_size, self.seed, self.groups = num_samples, batch_size, seed, groups
        self.share = batch_size // world_size
        self.offset = rank * self.share
        self.num_batches = full // accumulate * accumulate

    def __len__(self) -> int:
        return self.num_batches

    def keys(self, epoch: int, samples: int = 0) -> Iterator[list[Key]]:
        """This process's batches of one epoch as (epoch, index) keys.

        Args:
            epoch: Epoch, from 0.
            samples: Samples over all processes that the epoch has already seen.

        Raises:
            DataError: If the interruption was inside a batch of today's size.
        """
        if samples % self.batch_size:
            raise DataError(
                f"The checkpoint stopped {samples} samples into epoch {epoch}, which is no multiple of "
                f"batch_size={self.batch_size}. Resume with the batch size it was trained with, or one that divides it."
            )
        order = permutation(self.seed, epoch, self.num_samples)
        if self.groups is not None:
            order = by_group(order, self.groups, self.batch_size)
        for start in range(samples + self.offset, self.num_batches * self.batch_size, self.batch_size):
            yield [(epoch, int(index)) for index in order[start : start + self.share]]


class EvalBatches:
    """Evaluation batches of one process: every sample once over all processes, in order, nothing added.

    Args:
        num_samples: Samples in the split.
        batch_size: Samples of one batch over all processes.
        rank: This process.
        world_size: Number of processes.

    Raises:
        DataError: If a process would have nothing to do.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < world_size:
            raise DataError(f"batch_size={batch_size} gives some of {world_size} processes nothing. Raise it.")
        if num_samples < world_size:
            raise DataError(
                f"{num_samples} samples cannot be evaluated by {world_size} processes: some would have none. "
                "Evaluate on fewer devices."
            )
        self.num_samples, self.batch_size, self.rank, self.world_size = num_samples, batch_size, rank, world_size

    def __len__(self) -> int:
        full, rest = divmod(self.num_samples, self.batch_size)
        return full + (rest > self.rank)

    def keys(self, epoch: int, samples: int = 0) -> Iterator[list[Key]]:
        """This process's batches as (0, index) keys; evaluation is the same in every epoch."""
        for start in range(samples, self.num_samples, self.batch_size):
            share = np.array_split(np.arange(start, min(start + self.batch_size, self.num_samples)), self.world_size)
            if len(share[self.rank]):
                yield [(0, int(index)) for index in share[self.rank]]


class Samples:
    """Loads and augments samples by key, in a worker or in the main process alike.

    Args:
        source: The data set.
        pipeline: Augmentation, a function of (seed, epoch, index).
        substitute: Whether a bad sample is replaced by the next readable one instead of being left out.
    """

    def __init__(self, source: Source, pipeline: Pipeline, substitute: bool) -> None:
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
            return BadSample(index, self.source.name(index), str(problem), label)
        except Exception:
            reason = f"the transforms failed on this sample:\n{traceback.format_exc()}"
            return BadSample(index, self.source.name(index), reason, label, skippable=False)


def stack(samples: list[Batch]) -> Batch:
    """Joins samples of equal shape: images [H,W,C] become one contiguous tensor [B,C,H,W].

    Raises:
        DataError: If the images differ in size.
    """
    batch: Batch = {}
    for field in samples[0]:
        values = [sample[field] for sample in samples]
        if isinstance(values[0], np.ndarray) and values[0].ndim == 3:
            shapes = {value.shape for value in values}
            if len(shapes) > 1:
                raise DataError(
                    f"Images of one batch differ in size ({', '.join(map(str, sorted(shapes)[:3]))} ...). "
                    "End the transforms with a crop or a resize to one size."
                )
            height, width, channels = values[0].shape
            planes = np.empty((len(values), channels, height, width), values[0].dtype)
            for image, target in zip(values, planes, strict=True):
                cv2.split(image, list(target))  # ten times faster than a transposing copy
            batch[field] = torch.from_numpy(planes)
        elif isinstance(values[0], torch.Tensor):
            batch[field] = torch.stack(values)
        else:
            batch[field] = torch.as_tensor(np.asarray(values))
    return batch


class _Collate:
    """Joins what loaded and hands on what did not; an unequal batch is a message too, not a worker's traceback."""

    def __init__(self, join: Callable[[list[Batch]], Batch]) -> None:
        self.join = join

    def __call__(self, loaded: list[Batch | BadSample]) -> tuple[Batch | str | None, list[BadSample]]:
        samples = [sample for sample in loaded if not isinstance(sample, BadSample)]
        bad = [sample for sample in loaded if isinstance(sample, BadSample)]
        try:
            return (self.join(samples) if samples else None), bad
        except DataError as problem:
            return str(problem), bad


class _Cursor:
    """The batch sampler that torch's loader asks: it points where the next iteration starts."""

    def __init__(self, batches: TrainBatches | EvalBatches) -> None:
        self.batches, self.epoch, self.samples = batches, 0, 0

    def __iter__(self) -> Iterator[list[Key]]:
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
        position: Epoch and samples consumed in it over all processes, as the trainer counts them; None without one.
        num_workers: Worker processes; 0 loads in the main process.
        pin_memory: Whether batches are put in page-locked memory.
    """

    def __init__(
        self,
        samples: Samples,
        batches: TrainBatches | EvalBatches,
        join: Callable[[list[Batch]], Batch],
        report: Callable[[list[BadSample]], None],
        position: Callable[[], tuple[int, int] | None],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.batches, self.report, self.position = samples, batches, report, position
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
        """Epoch and samples consumed in it by all processes.

        Raises:
            DataError: If there is no trainer to ask: a loader only knows how far it has read ahead.
        """
        counted = self.position()
        if counted is None:
            raise DataError("The position of a training loader is its trainer's; there is none.")
        epoch, samples = counted
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
