"""How often `compare` errs, and what it finds, by simulation: the figures of docs/claims.md.

    python -m benchmarks.verdicts [--trials 2000]

Each row is a shape of the differences between two arms and a way to look at them. A t interval alone is the peer:
what `compare` said before it asked the signs too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from exp.claims.sequential import Looks, once
from exp.claims.statistics import Verdict, estimate, judge

Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]


def _lost(draw: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    return np.where(draw.random(size) < 0.1, -50.0, 0.0)


# Nothing is there: arms that are alike differ as often one way as the other.
ALIKE: dict[str, Draw] = {
    "normal": lambda draw, size: draw.standard_normal(size),
    "heavy tails (Student, 2 degrees of freedom)": lambda draw, size: draw.standard_t(2, size),
    "one run in ten diverges, of either arm": lambda draw, size: (
        draw.standard_normal(size) + _lost(draw, size) - _lost(draw, size)
    ),
    "counted on 60 images": lambda draw, size: (draw.binomial(60, 0.95, size) - draw.binomial(60, 0.95, size)) / 60.0,
}
# The mean is zero, but the arms are not alike: one gains in most seeds what it loses in a few.
SKEWED: dict[str, Draw] = {
    "exponential": lambda draw, size: 1 - draw.exponential(1, size),
    "one run in ten loses what nine gain": lambda draw, size: (
        np.where(draw.random(size) < 0.1, -9.0, 1.0) + 0.1 * draw.standard_normal(size)
    ),
}
EFFECTS = (0.5, 0.8, 1.2, 2.0)
SEQUENCE = (6, 8, 10, 12, 14, 16)
DESIGNS = {"3 seeds": once(3), "6 seeds": once(6), "16 seeds": once(16), "6 to 16": Looks(SEQUENCE, 16)}
ADDED = Looks((3, 4, 5, 6, 7, 8, 9, 10, 11, 12), 3)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    print(f"'holds' where the mean difference is zero, % of {trials} trials: the t interval alone, and the verdict")
    for name, draw in (ALIKE | SKEWED).items():
        for design, looks in (DESIGNS | {"3, then one by one to 12": ADDED}).items():
            samples = draw(np.random.default_rng(0), (trials, looks.counts[-1]))
            step = 1 / 60 if "counted" in name else 0.0
            alone = np.mean([_alone(sample, looks, step) for sample in samples])
            verdicts = [judge(list(sample), True, step, looks).verdict for sample in samples]
            print(f"{name:45} {design:25} {100 * alone:5.1f} {100 * verdicts.count(Verdict.HOLDS) / trials:5.1f}")
    print(
        "'holds' where there is a difference, of so many standard deviations of the differences, and seeds in the mean"
    )
    for effect in EFFECTS:
        samples = np.random.default_rng(1).normal(effect, 1, (trials, 16))
        for design in ("6 seeds", "16 seeds", "6 to 16"):
            looks = DESIGNS[design]
            found = [judge(list(sample[: looks.counts[-1]]), True, 0.0, looks) for sample in samples]
            holds = sum(each.verdict is Verdict.HOLDS for each in found) / trials
            used = np.mean([each.settled or looks.counts[-1] for each in found])
            print(f"{effect:45} {design:25} {100 * holds:5.1f} {used:5.1f}")


def _alone(sample: NDArray[np.float64], looks: Looks, step: float) -> bool:
    """Whether a 95 % t interval lies above zero at any of the looks."""
    for count in looks.counts:
        low = estimate(list(sample[:count]), step).low
        if low is not None and low > 0:
            return True
    return False


if __name__ == "__main__":
    main()
