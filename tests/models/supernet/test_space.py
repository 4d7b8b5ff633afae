"""Spaces: what is drawn, mutated and crossed lies in them, and what does not is refused by name."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest

from models.mistakes import Mistake
from models.supernet import Space, TransformerSpace

TRANSFORMERS = TransformerSpace(depths=[2, 3, 4], widths=[16, 24], heads=[2, 3], ratios=[2, 3.5])
LEVELS = Space({"first": [0.0, 0.5, 1.0], "second": [1, 2]})


def test_published_spaces_have_as_many_architectures_as_the_paper_counts() -> None:
    tiny = TransformerSpace([12, 13, 14], [192, 216, 240], [3, 4], [3.5, 4])
    base = TransformerSpace([14, 15, 16], [528, 576, 624], [9, 10], [3, 3.5, 4])
    assert tiny.size == pytest.approx(1.06e9, rel=0.01)
    assert base.size == pytest.approx(1.01e13, rel=0.01)


@pytest.mark.parametrize("space", [TRANSFORMERS, LEVELS])
def test_whatever_is_drawn_mutated_or_crossed_is_in_the_space(space: Space) -> None:
    random = Random(0)
    drawn = [space.draw(random) for _ in range(200)]
    drawn += [space.mutated(each, random, 0.3, 0.6) for each in drawn]
    crossed = [space.crossed(a, b, random) for a, b in pairwise(drawn) if space.crosses(a, b)]
    assert len(crossed) > 50
    for each in [*drawn, *crossed, space.smallest(), space.largest()]:
        space.refuse(each)
        assert space.read(space.described(each)) == each
    assert len({*drawn}) >= min(space.size, 40)


def test_nothing_mutates_at_probability_zero_and_depth_only_with_the_whole() -> None:
    random, start = Random(1), TRANSFORMERS.largest()
    assert {TRANSFORMERS.mutated(start, random, 0.0, 0.0) for _ in range(20)} == {start}
    layers = {TRANSFORMERS.mutated(start, random, 0.5, 0.0) for _ in range(50)}
    assert {(each[0], each[-1]) for each in layers} == {(4, 24)}
    assert len(layers) > 10
    whole = {TRANSFORMERS.mutated(start, random, 0.0, 1.0) for _ in range(50)}
    assert {each[0] for each in whole} == {2, 3, 4}
    # A shorter one keeps its first layers.
    assert all(set(each[1:-1]) <= {2, 3, 3.5} for each in whole)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"depth": 5, "ratios": [2] * 5, "heads": [2] * 5, "width": 16}, "depth is 5, but this space has 2, 3 or 4"),
        ({"depth": 2, "ratios": [2, 3], "heads": [2, 2], "width": 16}, "ratios of layer 2 is 3, .* 2 or 3.5"),
        ({"depth": 2, "ratios": [2, 2], "heads": [2], "width": 16}, "heads has one value for each of the 2 layers"),
        ({"depth": 2, "ratios": [2, 2], "heads": [2, 2]}, "described by depth, ratios, heads, width, not by depth"),
    ],
)
def test_what_is_outside_is_named(described: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        TRANSFORMERS.read(described)


def test_tuples_of_another_space_are_refused() -> None:
    with pytest.raises(Mistake, match="a depth, a ratio for each layer"):
        TRANSFORMERS.refuse((2, 2, 2, 2, 16))
    with pytest.raises(Mistake, match="second is 3, but this space has 1 or 2"):
        LEVELS.refuse((0.5, 3))
    with pytest.raises(Mistake, match="at least one value"):
        Space({"empty": []})
    with pytest.raises(Mistake, match="positive"):
        TransformerSpace([0, 2], [16], [2], [2])


def test_values_are_read_as_the_space_has_them() -> None:
    assert str(LEVELS.read({"first": 1, "second": 2.0})) == "(1.0, 2)"
