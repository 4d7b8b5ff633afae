"""The front: architectures of which none is both cheaper and better.

Parents that lie on it, and far from each other, are those of NSGA-II (Deb et al., IEEE Transactions on Evolutionary
Computation 6(2), 2002, sections III-A and III-B): an evolution with this order searches the whole trade-off at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from models.supernet.evolution import Order, Scored
from models.supernet.space import Architecture


def front(costs: Sequence[float], fitness: Sequence[float]) -> list[int]:
    """Positions of what nothing is at least as cheap and as good as, by rising cost; of equals the first."""
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -fitness[i], i)):
        if not found or fitness[i] > fitness[found[-1]]:
            found.append(i)
    return found


def by_front(cost: Callable[[Architecture], float]) -> Order:
    """An order for `evolution` whose first are on the front, those with the most room around them before others.

    Args:
        cost: Of an architecture; less is better.
    """

    def order(scored: list[Scored]) -> list[Scored]:
        left, found = [each for each in scored if not math.isnan(each.fitness)], []
        while left:
            costs, fitness = [cost(each.architecture) for each in left], [each.fitness for each in left]
            places = front(costs, fitness)
            rooms = _rooms([costs[i] for i in places], [fitness[i] for i in places])
            found += [left[places[i]] for i in sorted(range(len(places)), key=lambda i: -rooms[i])]
            left = [each for i, each in enumerate(left) if i not in set(places)]
        return found + [each for each in scored if math.isnan(each.fitness)]

    return order


def _rooms(costs: list[float], fitness: list[float]) -> list[float]:
    """How far apart the neighbours of each point of a front are, as a share of its extent; without end at its ends."""
    if len(costs) < 3:
        return [math.inf] * len(costs)
    width, height = costs[-1] - costs[0], fitness[-1] - fitness[0]
    inner = [
        (costs[i + 1] - costs[i - 1]) / width + (fitness[i + 1] - fitness[i - 1]) / height
        for i in range(1, len(costs) - 1)
    ]
    return [math.inf, *inner, math.inf]
