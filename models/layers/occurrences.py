"""How often each number occurs, without waiting for the device."""

import torch
from torch import Tensor


def occurrences(numbers: Tensor, count: int) -> Tensor:
    """How often each of 0 ... `count` - 1 occurs.

    As `torch.bincount`, which asks a GPU for the smallest and the largest number before it counts.

    Args:
        numbers: int64 of any shape, below `count`.
        count: How many there are.

    Returns:
        int64 [count].
    """
    flat = numbers.flatten()
    return torch.zeros(count, dtype=torch.int64, device=flat.device).index_add_(0, flat, torch.ones_like(flat))
