"""Evolution, random search and fronts: the same answers give the same questions, and every question is new."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from models.mistakes import Mistake
from models.supernet import Architecture, Space, TransformerSpace
from models.supernet.evolution import Plan, Proposal, Scored, Strategy, by_fitness, evolution, random_search
from models.supernet.front import by_front, front

SPACE = Space({name: list(range(8)) for name in "abcde"})
SHORT = Plan(generations=6, population=20, parents=5, mutations=10, crossovers=8)


def total(architecture: Architecture) -> float:
    return float(sum(architecture))


def anything(architecture: Architecture) -> bool:
    return True


def asked(strategy: Strategy, fitness: Callable[[Architecture], float] = total) -> list[list[Proposal]]:
    """The generations of a search."""
    generations, proposals = [], next(strategy, None)
    while proposals is not None:
        generations.append(proposals)
        try:
            proposals = strategy.send([fitness(each.architecture) for each in proposals])
        except StopIteration:
            proposals = None
    return generations


def test_it_climbs_and_asks_nothing_twice() -> None:
    generations = asked(evolution(SPACE, anything, SHORT, Random(0)))
    assert [len(each) for each in generations] == [20] * 7
    every = [each.architecture for generation in generations for each in generation]
    assert len(set(every)) == len(every)
    means = [sum(total(each.architecture) for each in some) / len(some) for some in generations]
    assert means[-1] > means[0] + 5
    origins = [each.origin for each in generations[1]]
    assert [origins.count(each) for each in ("mutation", "crossover", "random")] == [10, 8, 2]
    by_chance = asked(random_search(SPACE, anything, SHORT, Random(0)))
    assert max(map(total, every)) > max(total(each.architecture) for some in by_chance for each in some)


def test_the_same_answers_give_the_same_questions() -> None:
    first, second = (asked(evolution(SPACE, anything, SHORT, Random(3))) for _ in range(2))
    assert first == second
    assert first != asked(evolution(SPACE, anything, SHORT, Random(4)))
    # Until an answer differs, it asks the same.
    other = asked(evolution(SPACE, anything, SHORT, Random(3)), lambda each: -total(each))
    assert first[0] == other[0]
    assert first[1] != other[1]


def test_only_what_is_admitted_is_asked_for() -> None:
    generations = asked(evolution(SPACE, lambda each: total(each) <= 15, SHORT, Random(0)))
    values = [total(each.architecture) for generation in generations for each in generation]
    assert max(values) == 15


def test_a_space_that_is_used_up_ends_the_search() -> None:
    small = Space({"a": [0, 1], "b": [0, 1, 2]})
    generations = asked(evolution(small, anything, SHORT, Random(0)))
    assert sorted(each.architecture for generation in generations for each in generation) == [
        (a, b) for a in range(2) for b in range(3)
    ]
    assert len(asked(random_search(small, anything, SHORT, Random(0)))) == 1


@pytest.mark.parametrize("search", [evolution, random_search])
def test_nothing_is_asked_where_nothing_is_admitted(search: Callable[..., Strategy]) -> None:
    assert asked(search(Space({"a": [0, 1]}), lambda each: False, SHORT, Random(0))) == []


def test_parents_of_different_length_have_no_child() -> None:
    space = TransformerSpace(depths=[2, 3], widths=[8], heads=[1, 2, 3], ratios=[1, 2, 3])
    # One parent of each depth, so that pairs of equal length are twice the same one.
    best = {2: (2, 3, 3, 3, 3, 8), 3: (3, 3, 3, 3, 3, 3, 3, 8)}
    plan = Plan(generations=2, population=12, parents=2, mutations=0, crossovers=12)
    generations = asked(evolution(space, anything, plan, Random(0)), lambda each: 9.0 * (each == best[int(each[0])]))
    for generation in generations:
        for each in generation:
            space.refuse(each.architecture)


def test_the_last_generation_counts() -> None:
    kept: list[list[Scored]] = []

    def order(scored: list[Scored]) -> list[Scored]:
        kept.append(by_fitness(scored)[: SHORT.parents])
        return by_fitness(scored)

    generations = asked(evolution(SPACE, anything, SHORT, Random(0), order))
    every = [total(each.architecture) for generation in generations for each in generation]
    assert [each.fitness for each in kept[-1]] == sorted(every, reverse=True)[: SHORT.parents]


def test_the_front_is_what_nothing_beats() -> None:
    costs, fitness = [3.0, 1.0, 2.0, 2.0, 4.0, 1.0], [5.0, 1.0, 4.0, 3.0, 5.0, 1.0]
    assert front(costs, fitness) == [1, 2, 0]
    assert front([], []) == []


def test_evolution_by_the_front_looks_along_all_of_it() -> None:
    # What is good is dear: the front goes from end to end.
    def fitness(architecture: Architecture) -> float:
        return total(architecture) - 0.5 * abs(architecture[0] - architecture[1])

    def spread(generations: list[list[Proposal]]) -> float:
        every = [each.architecture for generation in generations for each in generation]
        return sum(fitness(every[i]) == total(every[i]) for i in front([*map(total, every)], [*map(fitness, every)]))

    plan = Plan(generations=15, population=20, parents=10, mutations=10, crossovers=8)
    along = asked(evolution(SPACE, anything, plan, Random(0), by_front(total)), fitness)
    upwards = asked(evolution(SPACE, anything, plan, Random(0)), fitness)
    assert spread(along) > spread(upwards)


def test_what_has_no_number_is_the_worst() -> None:
    scored = [Scored((0,), math.nan), Scored((1,), 2.0), Scored((2,), -math.inf), Scored((3,), 2.0)]
    assert [each.architecture for each in by_fitness(scored)][:2] == [(1,), (3,)]
    assert [each.architecture for each in by_front(total)(scored)][-1] == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 10, "mutations": 8, "crossovers": 8}, "more than a population of 10"),
        ({"layer": 1.5}, "from 0 to 1, not 1.5"),
        ({"parents": 0}, "one architecture at least"),
    ],
)
def test_plans_that_cannot_be(options: dict[str, float], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        Plan(**options)  # type: ignore[arg-type]
