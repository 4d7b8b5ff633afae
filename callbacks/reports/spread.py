"""A few things out of a stream of unknown length, evenly over all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from drawing.figures import evenly

T = TypeVar("T")


class Spread(Generic[T]):
    """Keeps things at equal distances, which double as the stream goes on; at most twice as many as are wanted.

    Neighbours of a split are often frames of one film, or images of one class.

    Args:
        most: how many are wanted.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._every, self._seen = 1, 0
        self._kept: list[T] = []

    def offer(self, make: Callable[[], T]) -> None:
        """Hears of the next one.

        Args:
            make: called if it is kept.
        """
        if self.most > 0 and self._seen % self._every == 0:
            self._kept.append(make())
            if len(self._kept) > 2 * self.most:
                self._kept = self._kept[::2]
                self._every *= 2
        self._seen += 1

    def things(self) -> list[T]:
        """Those that are wanted, in the order of the stream."""
        return evenly(self._kept, self.most) if self._kept else []
