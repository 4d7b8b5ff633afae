"""Which architectures to evaluate next, given how good those before were: evolution and random search.

A strategy is a generator: it yields proposals, is sent the fitness of each (larger is better), and yields the next. All
that it draws comes from one `random.Random`, so that with the same answers it asks the same questions: a search that
is killed goes on by asking again, and being told what is known already.

Reference: "AutoFormer", ICCV 2021, arXiv 2107.00651, section 3.4; microsoft/Cream 4a13c4091e78, whose order of draws is
kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from models.mistakes import Mistake
from models.supernet.space import Architecture, Space

# Architectures are drawn so many at a time; what is left of them when a generation has enough is thrown away.
_AT_ONCE = 10
# How often two parents are drawn before there is no child, and how many children are tried for each that is wanted.
_PAIRS, _TRIES = 50, 10
# Draws in a row without a new architecture within the limits, after which no more is looked for.
_PATIENCE = 10_000


class Proposal(NamedTuple):
    """An architecture that a strategy asks for, and where it comes from: `random`, `mutation` or `crossover`."""

    architecture: Architecture
    origin: str


class Scored(NamedTuple):
    """An architecture and how good it is; larger is better."""

    architecture: Architecture
    fitness: float


Strategy = Generator[list[Proposal], Sequence[float], None]
# The best of some architectures first.
Order = Callable[[list[Scored]], list[Scored]]


def by_fitness(scored: list[Scored]) -> list[Scored]:
    """The fittest first; of equals, what was known first. What has no number is the worst."""
    return sorted(scored, key=lambda each: -math.inf if math.isnan(each.fitness) else each.fitness, reverse=True)


@dataclass(frozen=True)
class Plan:
    """How long a search is and what a generation consists of; the published values by default.

    Args:
        generations: Rounds of children after the first, random population.
        population: Architectures of a round; what mutation and crossing leave of it is random.
        parents: Best architectures so far, of which children are made.
        mutations: Most children of one parent each.
        crossovers: Most children of two parents each.
        layer: Probability that a choice of one layer mutates.
        whole: Probability that a choice of the whole network mutates. The released code has 0.2 for a layer and 0.4
            for the whole, the paper's text 0.4 for a block and 0.2 for the depth.

    Raises:
        Mistake: A number that is not positive, more children than a round has, or a probability that is none.
    """

    generations: int = 20
    population: int = 50
    parents: int = 10
    mutations: int = 25
    crossovers: int = 25
    layer: float = 0.2
    whole: float = 0.4

    def __post_init__(self) -> None:
        if min(self.generations, self.mutations, self.crossovers) < 0 or min(self.population, self.parents) < 1:
            raise Mistake("a population and its parents are one architecture at least, and no number is negative")
        if self.mutations + self.crossovers > self.population:
            raise Mistake(
                f"{self.mutations} mutations and {self.crossovers} crossovers are more than a population of "
                f"{self.population}"
            )
        if not (0 <= self.layer <= 1 and 0 <= self.whole <= 1):
            raise Mistake(f"probabilities of mutation are from 0 to 1, not {self.layer} and {self.whole}")

    @property
    def most(self) -> int:
        """Architectures that are evaluated at most."""
        return self.population * (1 + self.generations)


class _Pool:
    """Architectures that have not been asked for yet."""

    def __init__(self, space: Space, admits: Callable[[Architecture], bool]) -> None:
        self.space, self.admits = space, admits
        self.asked: set[Architecture] = set()

    def fresh(
        self, draw: Callable[[], Architecture | None], wanted: int, tries: int | None = None
    ) -> list[Architecture]:
        """Architectures within the limits that are new, and from now on are not.

        Args:
            draw: Makes one, or none.
            wanted: How many.
            tries: After how many of them to stop; None stops when nothing new is in sight.
        """
        found: list[Architecture] = []
        batch: list[Architecture | None] = []
        done = since = 0
        while len(found) < wanted and (since < _PATIENCE if tries is None else done < tries):
            if not batch:
                if len(self.asked) == self.space.size:
                    break
                batch = [draw() for _ in range(_AT_ONCE)]
            architecture = batch.pop(0)
            done, since = done + 1, since + 1
            if architecture is not None and architecture not in self.asked and self.admits(architecture):
                self.asked.add(architecture)
                found.append(architecture)
                since = 0
        return found


def evolution(
    space: Space, admits: Callable[[Architecture], bool], plan: Plan, random: Random, order: Order = by_fitness
) -> Strategy:
    """Proposes a random population, and then children of the best so far, generation by generation.

    What the released code gets wrong is right here. Parents that are not of equal length have no child (there, a
    mixture of both). The last generation counts (there, it is evaluated and forgotten). Any number of parents works
    (there, 50 of them mix with a list that is for logging). No test image is looked at.

    Args:
        space: What is searched.
        admits: Whether an architecture is within the limits.
        plan: How long, how many, how near.
        random: All that is drawn comes from it.
        order: Which are the best, of the best so far and the last generation.

    Yields:
        Proposals of a generation, each new and admitted; fewer than the plan says, or none, where there are no more.
    """
    pool = _Pool(space, admits)

    def mutant() -> Architecture:
        return space.mutated(random.choice(best).architecture, random, plan.layer, plan.whole)

    def child() -> Architecture | None:
        one, other = random.choice(best).architecture, random.choice(best).architecture
        for _ in range(_PAIRS):
            if space.crosses(one, other):
                break
            one, other = random.choice(best).architecture, random.choice(best).architecture
        return space.crossed(one, other, random) if space.crosses(one, other) else None

    def stranger() -> Architecture:
        return space.draw(random)

    best: list[Scored] = []
    proposals = [Proposal(each, "random") for each in pool.fresh(stranger, plan.population)]
    for generation in range(plan.generations + 1):
        if not proposals:
            return
        fitness = yield proposals
        scored = [Scored(each.architecture, value) for each, value in zip(proposals, fitness, strict=True)]
        best = order(best + scored)[: plan.parents]
        if generation == plan.generations:
            return
        proposals = [Proposal(each, "mutation") for each in pool.fresh(mutant, plan.mutations, _TRIES * plan.mutations)]
        children = pool.fresh(child, plan.crossovers, _TRIES * plan.crossovers)
        proposals += [Proposal(each, "crossover") for each in children]
        others = pool.fresh(stranger, plan.population - len(proposals))
        proposals += [Proposal(each, "random") for each in others]


def random_search(space: Space, admits: Callable[[Architecture], bool], plan: Plan, random: Random) -> Strategy:
    """Proposes random architectures, as many as an evolution of the same plan; the baseline that it has to beat.

    Args:
        space: What is searched.
        admits: Whether an architecture is within the limits.
        plan: How many.
        random: All that is drawn comes from it.

    Yields:
        Proposals, each new and admitted.
    """
    pool = _Pool(space, admits)
    for _ in range(plan.generations + 1):
        found = pool.fresh(lambda: space.draw(random), plan.population)
        if not found:
            return
        yield [Proposal(each, "random") for each in found]
