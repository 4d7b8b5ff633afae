"""Which samples a process takes in which batch.

Sample order is a function of (seed, epoch) and a batch is a slice of it, so that the same configuration trains on the
same batches whatever the number of processes, workers or interruptions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from datamodules.errors import DataError
from datamodules.ordering import by_group, permutation

Key = tuple[int, int]


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
        same_order: Whether every epoch has the order of the first, so that its first batches are always the same.

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
        same_order: bool = False,
    ) -> None:
        self.share = equal_share(batch_size, world_size)
        self.offset = rank * self.share
        full = num_samples // batch_size if groups is None else int((np.bincount(groups) // batch_size).sum())
        if full < accumulate:
            grouped = "" if groups is None else " of one group"
            raise DataError(
                f"{num_samples} training samples are fewer than one optimiser step takes ({batch_size}{grouped} x "
                f"{accumulate} accumulated batches). Lower batch_size or accumulate_grad_batches."
            )
        self.num_samples, self.batch_size, self.seed, self.groups = num_samples, batch_size, seed, groups
        self.same_order = same_order
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
        order = permutation(self.seed, 0 if self.same_order else epoch, self.num_samples)
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


class RoundBatches:
    """Batches of one process that go round a data set for as long as they are asked, every sample once a round.

    A batch may hold the end of one round and the start of the next.

    Args:
        num_samples: Samples in the data set.
        batch_size: Samples of one batch over all processes.
        seed: Seed of the order; another one than that of ``TrainBatches`` beside it.
        rank: This process.
        world_size: Number of processes.

    Raises:
        DataError: If the batch cannot be shared equally.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.share = equal_share(batch_size, world_size)
        self.num_samples, self.batch_size, self.seed, self.rank = num_samples, batch_size, seed, rank
        self._order: tuple[int, np.ndarray] = -1, np.empty(0, np.int64)

    def keys(self, step: int) -> list[Key]:
        """One batch as (round, index) keys.

        Args:
            step: Batches that the run has seen before.
        """
        start = step * self.batch_size + self.rank * self.share
        return [self._key(*divmod(place, self.num_samples)) for place in range(start, start + self.share)]

    def _key(self, number: int, place: int) -> Key:
        if number != self._order[0]:
            self._order = number, permutation(self.seed, number, self.num_samples)
        return number, int(self._order[1][place])


class SideBySide:
    """Batches of several streams, each with its own batch size: the first makes the epochs, the others go round.

    Where each of them is follows from the epoch and the samples that the first has seen in it, so that a checkpoint
    that carries these restores all.

    Args:
        name: The first stream.
        first: Its batches.
        others: Batches of the other streams, by name.
    """

    def __init__(self, name: str, first: TrainBatches, others: dict[str, RoundBatches]) -> None:
        self.name, self.first, self.others = name, first, others
        self.batch_size = first.batch_size

    def __len__(self) -> int:
        return len(self.first)

    def keys(self, epoch: int, samples: int = 0) -> Iterator[dict[str, list[Key]]]:
        """This process's batches of one epoch, the keys of each stream by its name.

        Args:
            epoch: Epoch, from 0.
            samples: Samples of the first stream over all processes that the epoch has already seen.

        Raises:
            DataError: If the interruption was inside a batch of today's size.
        """
        before = epoch * len(self.first) + samples // self.batch_size
        for step, own in enumerate(self.first.keys(epoch, samples), before):
            yield {self.name: own} | {name: other.keys(step) for name, other in self.others.items()}


def equal_share(batch_size: int, world_size: int) -> int:
    """Samples of a training batch for each process.

    Raises:
        DataError: If the batch cannot be shared equally.
    """
    if batch_size < 1 or batch_size % world_size:
        raise DataError(
            f"batch_size={batch_size} counts the samples of one batch over all processes and cannot be shared "
            f"equally by {world_size} of them. Use a multiple of {world_size}."
        )
    return batch_size // world_size
