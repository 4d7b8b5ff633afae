"""Whether weights can follow a schedule of the learning rate into its equilibria."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from models.spherical_motion.theory import Setting, steps_to_equilibrium, time_constant

# A learning rate that is divided by more at a step, and by less than STILL before and after it, has dropped, and does
# not merely fall.
LEAST_DROP, STILL = 1.5, 1.1
# Angular updates nearer to their equilibrium's than that have followed.
NEAR = 0.1


@dataclass(frozen=True)
class Drop:
    """A learning rate that is divided at once.

    Args:
        step: the first with the new learning rate, from 0.
        factor: what it was divided by.
        takes: steps until weights that were in equilibrium are so again; infinite where there is none.
        left: steps until the next drop, or the end.
    """

    step: int
    factor: float
    takes: float
    left: int


def drop_at(rate: Callable[[int], float], step: int) -> float:
    """What a learning rate that drops at a step is divided by; 1 where it does not.

    Args:
        rate: of a step; asked one step before the beginning and one after the end, too, as one that does not change.
        step: from 0.
    """

    def falls(i: int) -> float:
        before, now = rate(max(i - 1, 0)), rate(max(i, 0))
        return before / now if now > 0 else math.inf

    factor = falls(step)
    drops_here = LEAST_DROP < factor < math.inf and max(falls(step - 1), falls(step + 1)) < STILL
    return factor if drops_here else 1.0


def drops(setting: Setting, rates: Sequence[float]) -> list[Drop]:
    """The drops of a schedule, with the time that each leaves.

    Args:
        setting: of the optimiser; its own learning rate does not count.
        rates: learning rate of each step.
    """
    factors = {i: drop_at(lambda j: rates[min(j, len(rates) - 1)], i) for i in range(len(rates))}
    at = [i for i, factor in factors.items() if factor > 1]
    found = []
    for step, until in zip(at, [*at, len(rates)][1:], strict=True):
        factor = factors[step]
        takes = steps_to_equilibrium(replace(setting, lr=rates[step]), factor)
        found.append(Drop(step, factor, takes, until - step))
    return found


def followed(setting: Setting, rates: Sequence[float]) -> list[float]:
    """Angular updates as shares of their equilibrium's, of weights that follow a schedule from equilibrium on.

    |w|^p relaxes towards an equilibrium that moves with the learning rate; the share is the square root of their ratio.

    Args:
        setting: of the optimiser; its own learning rate does not count.
        rates: learning rate of each step, none below 0.
    """
    square, shares = rates[0] or max(rates), []
    for rate in rates:
        if rate > 0:
            square += (rate - square) * -math.expm1(-1 / time_constant(replace(setting, lr=rate)))
        shares.append(math.sqrt(rate / square))
    return shares


def late_from(setting: Setting, rates: Sequence[float]) -> int | None:
    """The step from which weights stay behind a schedule until its end; None where they do not.

    Args:
        setting: of the optimiser; its own learning rate does not count.
        rates: learning rate of each step.
    """
    late = None
    for step, share in enumerate(followed(setting, rates)):
        if share >= 1 - NEAR:
            late = None
        elif late is None:
            late = step
    return late


def remarks(setting: Setting, rates: Sequence[float]) -> list[str]:
    """What a person should know of a schedule, in words: drops without enough time, or where it runs ahead of weights.

    Args:
        setting: of the optimiser; its own learning rate does not count.
        rates: learning rate of each step.
    """
    found = drops(setting, rates)
    said = [
        f"after the drop at step {each.step} equilibrium takes {each.takes:,.0f} steps; {each.left:,} are left"
        for each in found
        if each.takes > each.left
    ]
    if not found and (late := late_from(setting, rates)) is not None:
        said.append(
            f"from step {late} on the learning rate changes faster than weights follow: angular updates stay more than "
            f"{100 * NEAR:.0f} % from their equilibrium's"
        )
    return said
