"""Parts of a split: some of its samples, each class in proportion, always the same ones."""

from __future__ import annotations

import copy

import numpy as np

from datamodules.base import DataModule, Split
from datamodules.loading import Loader
from datamodules.splits import SPLIT_SEED, Source, Subset, hold_out


def divided(source: Source, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a data set in two: so many, and the others; both ascending, int64.

    Args:
        source: The data set; if it has `labels`, its classes are in proportion.
        number: How many, from 1 to all but one.
    """
    labels = getattr(source, "labels", None)
    if labels is None:
        order = np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(source))
        return np.sort(order[:number]), np.sort(order[number:])
    others, some = hold_out(labels, number)
    return some, others


def part_dataloader(data: DataModule, split: Split, indices: np.ndarray) -> Loader:
    """Some samples of a split, each once, in order and with the evaluation transforms.

    Args:
        data: Has the split.
        split: Its name.
        indices: Positions in it, int64 [n].
    """
    part = copy.copy(data)
    part._sources = {**data._sources, split: Subset(data.source(split), indices)}  # type: ignore[arg-type]
    return part._evaluation_loader(split)
