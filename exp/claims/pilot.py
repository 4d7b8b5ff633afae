"""`compare --plan`: two pilot seeds, which do not count, tell what a claim could settle and how long it would take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from exp.claims.cells import Cell
from exp.claims.claim_file import Claim, is_share
from exp.claims.expectations import Expectation
from exp.claims.remaining import Remaining, rounded
from exp.claims.report import say
from exp.claims.results import Values
from exp.claims.sequential import Looks, once
from exp.claims.statistics import MOST_SEEDS, half_width, level, seeds_for

# Far from the seeds that people list.
_FIRST = 1000
# A deviation of two values is s; the true one lies between these multiples of it in four of five trials (chi-square).
_FROM, _TO = 0.6, 8


def pilot_seeds(claim: Claim) -> list[int]:
    """Two seeds that the claim does not use."""
    return list(itertools.islice((s for s in itertools.count(_FIRST) if s not in claim.seeds.listed), 2))


def tell(claim: Claim, pilots: Sequence[Cell], cells: Sequence[Cell], jobs: int | None, console: Console) -> None:
    """Prints what the pilots say of the claim.

    Args:
        claim: the claim.
        pilots: cells of the pilot seeds, which have been run.
        cells: those that the claim would run at most.
        jobs: how many cells run at a time; None: all of them.
        console: where to print.
    """
    count = len(claim.seeds.listed)
    looks = Looks(tuple(claim.seeds.looks), count)
    table = Table("expectation", "seen", "spread", f"{count} seeds settle beyond", "asks for", box=None, pad_edge=False)
    values = Values(claim, pilots)
    seeds = sorted({cell.seed for cell in pilots})
    for expectation in claim.expectations:
        shares = any(is_share(quantity or claim.metric) for quantity, _ in expectation.quantities())
        row = _row(expectation, values, seeds, looks, claim.unit if shares else "")
        table.add_row(escape(expectation.text), *row)
    console.print(table, highlight=False)
    say(
        console,
        f"'seen' is how far beyond the boundary two pilot seeds lie; 'asks for' is how many seeds settle that in four "
        f"of five trials. The spread of two seeds is a rough guess: the true one may be {_FROM} to {_TO} times it.",
    )
    for number in sorted({claim.seeds.looks[0], count}):
        planned = [cell for cell in cells if cell.seed in claim.seeds.listed[:number]]
        seconds = Remaining(claim.name, jobs).seconds([*pilots, *planned])
        took = f", {rounded(seconds)} with {jobs or len(planned)} at a time" if seconds else ""
        say(console, f"{number} seeds: {len(planned)} cells{took}")


def _row(
    expectation: Expectation, values: Values, seeds: Sequence[int], looks: Looks, unit: str
) -> tuple[str, str, str, str]:
    step = max(values.step(quantity) for quantity, _ in expectation.quantities())
    sides = expectation.answer(seeds, values, step, once(len(seeds))).sides
    # Of a margin, the nearer end has to be told apart.
    side = min(sides, key=lambda each: abs(each.found.mean))
    mean, deviation = side.found.mean, side.deviation
    if not math.isfinite(mean):
        return "nothing, for a pilot has no result", "", "", ""
    if deviation == 0:
        return f"{mean:+.3g}{unit}", "none", "any", "3 seeds: it does not vary"
    half = _half_width(deviation, looks)
    needed = seeds_for(mean, deviation)
    asked = f"about {needed} seeds" if needed else f"more than {MOST_SEEDS:,} seeds"
    return f"{mean:+.3g}{unit}", f"{deviation:.2g}{unit}", "nothing" if half is None else f"{half:.2g}{unit}", asked


def _half_width(deviation: float, looks: Looks) -> float | None:
    """Of the interval at the last look, had the differences this deviation."""
    count = looks.counts[-1]
    if not looks.spent(count):
        return None
    return half_width(deviation, count, level(looks, len(looks.counts) - 1))
