"""In which order an epoch takes its samples: at random, or batches of samples that belong together."""

from __future__ import annotations

import numpy as np


def permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Order of the samples in one epoch, int64 [num_samples], a function of its arguments only."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_samples)


def by_group(order: np.ndarray, groups: np.ndarray, batch_size: int) -> np.ndarray:
    """Reorders samples so that each batch is of one group; batches come in the order in which they fill.

    Args:
        order: Samples, int64 [n].
        groups: Group of each sample, int64 [n].
        batch_size: Samples of a batch.

    Returns:
        Samples batch after batch, int64 [m]; those that fill no batch are missing.
    """
    complete: list[tuple[int, np.ndarray]] = []
    for group in np.unique(groups):
        places = np.flatnonzero(groups[order] == group)
        full = places[: len(places) // batch_size * batch_size].reshape(-1, batch_size)
        complete += [(int(batch[-1]), order[batch]) for batch in full]
    complete.sort(key=lambda batch: batch[0])
    return np.concatenate([samples for _, samples in complete]) if complete else order[:0]


def derived_seed(seed: int, name: str) -> int:
    """A seed for what is random beside what ``seed`` itself is for, such as a second stream of samples.

    Args:
        seed: The run's seed.
        name: What it is for.

    Returns:
        A function of both, from 0 to 2^32 - 1.
    """
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])
