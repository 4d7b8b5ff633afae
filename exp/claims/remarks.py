"""What a reader must know of a verdict besides it, in sentences; and what would settle an open one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exp.claims.expectations import Answer
from exp.claims.sequential import FEWEST_TO_SETTLE
from exp.claims.statistics import MOST_SEEDS, Judgement, Verdict, seeds_for, smallest_step

# In a normal sample one value in a thousand lies as far from the median; of six, none looks as if it had fallen apart.
_FAR = 10.0


def remarks(answer: Answer, seeds: Sequence[int], diverged: dict[str, list[int]]) -> list[str]:
    """What is to be known of an answer.

    Args:
        answer: the answer.
        seeds: the seeds, in the order of its margins.
        diverged: arm that it is about -> its seeds that diverged.
    """
    said = [
        f"{_listed(lost)} of {arm} diverged: counted as worse than any other in the signs, left out of the mean"
        for arm, lost in diverged.items()
        if lost
    ]
    # Of the two ends of a margin, the one that decided, or did not.
    side = next((side for side in answer.sides if side.verdict is answer.verdict), answer.sides[0])
    if side.signs is None:
        return said
    if answer.verdict is Verdict.INCONCLUSIVE:
        said += _undecided(side, len(seeds))
    if side.lone is not None:
        said.append(f"seed {seeds[side.lone]} carries it: without that, the interval would contain the boundary")
    return said


def _undecided(side: Judgement, count: int) -> list[str]:
    assert side.signs is not None
    nearer = side.signs[0] if side.found.mean > 0 else side.signs[1]
    if count < FEWEST_TO_SETTLE:
        return [
            f"{count} seeds cannot settle it: were the signs of the differences chance, they would all be alike in "
            f"{100 * nearer.least:.2g} % of trials; {FEWEST_TO_SETTLE} seeds are the fewest"
        ]
    p = f"p {100 * nearer.p:.2g} %, with as many seeds at best {100 * nearer.least:.2g} %"
    if side.by_interval is not Verdict.INCONCLUSIVE and nearer.settled is None:
        return [f"the interval alone would say {side.by_interval}, the signs of the differences do not ({p})"]
    if side.by_interval is Verdict.INCONCLUSIVE and nearer.settled is not None:
        says = Verdict.HOLDS if side.found.mean > 0 else Verdict.DOES_NOT_HOLD
        return [f"the signs of the differences alone would say {says} ({p}), the interval does not: see each seed"]
    return []


def would_settle(answer: Answer) -> dict[str, Any] | None:
    """Of an open answer: the smallest distance from the boundary that it would have settled, and how many seeds the one
    seen asks for; None where nothing is known of them.
    """
    side = answer.sides[0]
    found = side.found
    if answer.verdict is not Verdict.INCONCLUSIVE or found.low is None or found.high is None:
        return None
    half = (found.high - found.low) / 2
    if len(answer.sides) > 1:
        # Within a margin, the nearer end of it is what has to be told apart.
        found = min((each.found for each in answer.sides), key=lambda each: abs(each.mean))
    return {"difference": half, "seeds": seeds_for(found.mean, side.deviation)}


def fallen_apart(values: dict[int, float], better: str) -> list[int]:
    """Seeds of an arm whose value lies far on the worse side of the others: runs that fell apart without saying so.

    Args:
        values: seed -> value; six or more, for fewer tell nothing.
        better: max or min.
    """
    known = np.asarray(list(values.values()))
    if len(known) < FEWEST_TO_SETTLE:
        return []
    middle = float(np.median(known))
    usual = max(1.4826 * float(np.median(np.abs(known - middle))), smallest_step(list(known)))
    sign = 1 if better == "max" else -1
    return [seed for seed, value in values.items() if sign * (middle - value) > _FAR * usual > 0]


def unseen(count: int) -> float:
    """The largest share of seeds that may diverge although none of so many did, in 95 % of trials."""
    return 1 - 0.05 ** (1 / count)


def _listed(seeds: Sequence[int]) -> str:
    names = ", ".join(map(str, seeds))
    return f"seed {names}" if len(seeds) == 1 else f"seeds {names}"


def advice(settle: Mapping[str, Any], smallest: str) -> str:
    """What would settle an open expectation, in a sentence.

    Args:
        settle: what `would_settle` returned.
        smallest: its difference as a reader has it.
    """
    needed = settle["seeds"]
    number = f"about {needed:d} seeds" if needed is not None else f"more than {MOST_SEEDS:,} seeds"
    return f"these seeds would have settled {smallest} beyond the boundary; what was seen asks for {number}"
