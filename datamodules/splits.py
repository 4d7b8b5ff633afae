"""Data sets as the loader sees them, and the held-out validation split."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from typing_extensions import override

from datamodules.errors import DataError

# The split is part of the task, like the test set: it must not move with the run's seed.
SPLIT_SEED = 20260101


class Source(Protocol):
    """A data set: any object that can count, load and name its samples."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``image`` (array [H,W,3] uint8, or ``Encoded``) and the task's other fields.

        Raises:
            DataError: If the sample is unreadable.
        """

    def name(self, index: int) -> str:
        """What a person would look for: a path, or ``cifar10/test #17``."""


class LabelledSource(Source, Protocol):
    """A data set with one class index a sample."""

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 [n]."""


class Subset(LabelledSource):
    """Some samples of a data set, in the given order.

    Args:
        source: The whole data set.
        indices: Positions in it, int64 [n].
    """

    def __init__(self, source: LabelledSource, indices: np.ndarray) -> None:
        self.source = source
        # As a tensor, worker processes get it as shared memory.
        self._indices = torch.from_numpy(indices)

    @override
    def __len__(self) -> int:
        return len(self._indices)

    @property
    @override
    def labels(self) -> np.ndarray:
        return self.source.labels[self._indices.numpy()]

    @override
    def load(self, index: int) -> dict[str, Any]:
        return self.source.load(int(self._indices[index]))

    @override
    def name(self, index: int) -> str:
        return self.source.name(int(self._indices[index]))


def hold_out(labels: np.ndarray, amount: int | float) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples in two, each class in proportion, always in the same way.

    Args:
        labels: Class index of each sample, int64 [n].
        amount: Held-out samples: a number, or a fraction below 1.

    Returns:
        Indices kept and indices held out, both ascending; together every sample once.

    Raises:
        DataError: If nothing would be left on one side.
    """
    n = len(labels)
    held = round(amount * n) if isinstance(amount, float) and amount < 1 else int(amount)
    if amount == 0:
        return np.arange(n), np.empty(0, np.int64)
    if not 0 < held < n:
        raise DataError(
            f"holdout={amount} of {n} samples leaves {n - held} for training and {held} for validation: give another "
            "share or number, or 0 to train without validation."
        )
    generator = np.random.Generator(np.random.PCG64(SPLIT_SEED))
    order = generator.permutation(n)
    # Rank every sample within its class by its shuffled position; taking the smallest (rank / class size) first
    # spreads the held-out samples over classes in proportion, down to one sample.
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    quantile = (np.arange(n) - starts + 0.5) / np.repeat(sizes, sizes)
    chosen = by_class[np.argsort(quantile, kind="stable")[:held]]
    mask = np.zeros(n, bool)
    mask[chosen] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def in_proportion(labels: np.ndarray, indices: np.ndarray, number: int | None) -> np.ndarray:
    """Some samples of each class in proportion, always the same ones.

    Args:
        labels: Class index of each sample, int64 [n].
        indices: Those to choose from, ascending.
        number: How many; None takes all of them.

    Raises:
        DataError: If there are not so many.
    """
    if number is None or number == len(indices):
        return indices
    if not 0 < number < len(indices):
        raise DataError(f"num_train={number}: there are {len(indices)} samples to train on. Give a number up to that.")
    return indices[hold_out(labels[indices], number)[1]]
