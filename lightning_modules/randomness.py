"""Seeds of a training step, as a function of the run's seed and the step alone."""

from __future__ import annotations

import hashlib
import struct


def step_seed(seed: int, epoch: int, step: int, rank: int | None = None) -> int:
    """A 64-bit seed of a training step: the same in a resumed run as in an uninterrupted one.

    Args:
        seed: The run's.
        epoch: From 0.
        step: Batch of the epoch, from 0.
        rank: Process that the seed is for, or None for a seed that all processes share.
    """
    key = struct.pack("<3q", seed, epoch, step) + (b"all" if rank is None else struct.pack("<q", rank))
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
