"""Batches in memory, in a form that Lightning takes for one loader (it takes a list for several)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


class Batches:
    """A loader of given batches."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.batches)
