"""Which images of a split are drawn."""

from __future__ import annotations

from itertools import pairwise

import pytest

from callbacks.reports.spread import Spread


@pytest.mark.parametrize("length", [0, 1, 3, 7, 100, 1001])
def test_things_are_spread_over_the_stream(length: int) -> None:
    spread = Spread[int](3)
    for i in range(length):
        spread.offer(lambda i=i: i)
    found = spread.things()
    assert len(found) == min(length, 3)
    assert len(spread._kept) <= 6, "what is not wanted is not kept"
    if length >= 7:
        assert found[0] == 0
        assert found[-1] >= length / 2
        assert min(b - a for a, b in pairwise(found)) >= length / 8


def test_nothing_is_made_where_nothing_is_wanted() -> None:
    spread = Spread[int](0)
    spread.offer(lambda: pytest.fail("made"))
    assert spread.things() == []
