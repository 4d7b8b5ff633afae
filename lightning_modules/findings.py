"""What an evaluation finds, and how the processes of a job put it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Findings:
    """What an evaluation found, the same on every process; a task adds what its reports draw.

    Args:
        metrics: What is logged, by name without the split.
    """

    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)

    def table(self) -> list[list[str]]:
        """What there is to say of each class: names of the columns, then a row for each class; empty for nothing."""
        return []


def gathered(value: T) -> list[T]:
    """What each process gives, in the order of the processes; every process must ask, and all get it.

    Args:
        value: Anything that can be pickled; tensors on the host.
    """
    if not _several_processes():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gathered_on_first(value: T) -> list[T] | None:
    """What each process gives, on the first process; None on the others. Every process must call it.

    Args:
        value: Anything that can be pickled, too large to be had everywhere.
    """
    if not _several_processes():
        return [value]
    values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values


def told_by_first(value: T) -> T:
    """What the first process gives, on every process; every process must call it."""
    if not _several_processes():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
