"""From finished cells to a result: values, estimates, verdicts, and the files that hold them."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from callbacks.whole_files import write_whole
from exp.claims.cells import Cell, State
from exp.claims.claim_file import Claim, counts_compute
from exp.claims.code_version import merged
from exp.claims.expectations import Expectation
from exp.claims.history import History
from exp.claims.published import config_digest
from exp.claims.remarks import fallen_apart, remarks, would_settle
from exp.claims.statistics import FEWEST_SEEDS, Estimate, Verdict, all_of, estimate, smallest_step
from exp.claims.taken import After
from exp.surroundings import commit, machine

# What the same cells give on any day; `circumstances.json` holds what they do not.
RESULTS = "results.json"
CIRCUMSTANCES = "circumstances.json"
# How verdicts were found: by looks whose error is spent, with the signs of the differences beside the interval.
RULE = "sequential"


def collect(claim: Claim, cells: Sequence[Cell], extra: Sequence[str], history: History) -> dict[str, Any]:
    """The result of a claim, from the cells that were asked for: the same for the same cells and looks, bit for bit.

    A cell that failed, or whose metric is missing, takes the verdict from every expectation that needs its arm; of the
    others this is a look, which the history notes. A cell that diverged, or whose metric is not finite, is an outcome.

    Args:
        claim: the claim.
        cells: planned cells, of some or all arms and seeds.
        extra: overrides from the command line.
        history: the looks before this one.

    Returns:
        What `results.json` holds.
    """
    planned = {cell.seed for cell in cells}
    seeds = [seed for seed in history.seeds if seed in planned]
    arms = [name for name in claim.arms if any(cell.arm.name == name for cell in cells)]
    values = Values(claim, cells)
    complete = [arm for arm in arms if all(cell.ended for cell in cells if cell.arm.name == arm)]
    history.add(cells, len(seeds), complete)
    answers = [_answer(claim, expectation, seeds, arms, values, history) for expectation in claim.expectations]
    return {
        "rule": RULE,
        "claim": claim.claim,
        "source": claim.source,
        "notes": claim.notes,
        "file": str(claim.path),
        "metric": claim.metric,
        "at": claim.at,
        "better": claim.better,
        "unit": claim.unit.strip(),
        "seeds": seeds,
        **history.written(),
        "reference": claim.reference,
        "overrides": list(extra),
        "verdict": all_of([Verdict(answer["verdict"]) for answer in answers]),
        "expectations": answers,
        "arms": {arm: _arm(claim, arm, seeds, values) for arm in arms},
        "failed": [{"cell": cell.name, "reason": cell.reason or str(cell.state)} for cell in cells if not cell.ended],
        "configs": {path: config_digest(Path(path)) for path in claim.configs},
        "code": merged(cell.identity["code"] for cell in cells),
    }


class Values:
    """What was measured of the cells, in the claim's unit: `values(quantity, arm, seed)`.

    Args:
        claim: the claim.
        cells: of which those count that have ended.
    """

    def __init__(self, claim: Claim, cells: Sequence[Cell]) -> None:
        self.claim = claim
        self.measured: dict[tuple[str, str, int], float] = {}
        self.diverged: dict[str, list[int]] = {}
        for cell in cells:
            if cell.state is State.DIVERGED:
                values = dict.fromkeys(claim.metrics(), math.nan)
            elif cell.state is State.FINISHED:
                values = {name: cell.value(name, claim.at, claim.better) for name in claim.metrics()}
                for quantity, spent in cell.cost().items():
                    self.measured[quantity, cell.arm.name, cell.seed] = spent
            else:
                continue
            self._take(cell, values)
        finite = [(metric, value) for (metric, _, _), value in self.measured.items() if math.isfinite(value)]
        self.steps = {
            metric: smallest_step([value for name, value in finite if name == metric])
            for metric in claim.metrics()
            if not counts_compute(metric)
        }

    def _take(self, cell: Cell, values: dict[str, float]) -> None:
        arm, seed = cell.arm.name, cell.seed
        for metric, value in values.items():
            if arm not in self.claim.metrics()[metric]:
                continue
            lost = cell.state is State.DIVERGED or cell.logged(metric)
            if not math.isfinite(value) and lost:
                value = self.claim.worst(metric)
                if math.isinf(value) and seed not in self.diverged.setdefault(arm, []):
                    self.diverged[arm].append(seed)
            self.measured[metric, arm, seed] = value * self.claim.scale(metric)

    def __call__(self, quantity: str, arm: str, seed: int) -> float:
        """Infinite where the arm diverged, not a number where nothing is known."""
        return self.measured.get((quantity or self.claim.metric, arm, seed), math.nan)

    def step(self, metric: str) -> float:
        """What a metric moves by."""
        return self.steps.get(metric or self.claim.metric, 0.0)


def _arm(claim: Claim, arm: str, seeds: list[int], values: Values) -> dict[str, Any]:
    own = {seed: values("", arm, seed) for seed in seeds}
    finite = {seed: value for seed, value in own.items() if math.isfinite(value)}
    pairs = [(value, values("", claim.reference, seed)) for seed, value in finite.items()]
    differences = [a - b for a, b in pairs if math.isfinite(b)]
    costs = {}
    for cost in ("params", "macs"):
        known = [c for seed in seeds if math.isfinite(c := values(cost, arm, seed))]
        costs[cost] = sum(known) / len(known) if known else None
    step = values.step("")
    starts_from = claim.arms[arm].starts_from
    taken = [str(each) for each in claim.arms[arm].after if not (isinstance(each, After) and not each.file)]
    return {
        "overrides": claim.arms[arm].overrides,
        "after": ", ".join(starts_from) or None,
        **({"takes": taken} if taken else {}),
        "values": {str(seed): value if math.isfinite(value) else None for seed, value in own.items()},
        "diverged": values.diverged.get(arm, []),
        "apart": fallen_apart(finite, claim.better),
        **_numbers(estimate(list(finite.values()), step) if finite else None),
        "difference": _numbers(estimate(differences, step) if differences and arm != claim.reference else None),
        **costs,
    }


def _numbers(found: Estimate | None) -> dict[str, Any]:
    return {
        "mean": found.mean if found and math.isfinite(found.mean) else None,
        "interval": [found.low, found.high] if found and found.low is not None else None,
    }


def _answer(
    claim: Claim, expectation: Expectation, seeds: list[int], arms: list[str], values: Values, history: History
) -> dict[str, Any]:
    """The verdict on one expectation, or the reason why there is none."""
    answer: dict[str, Any] = {"expect": expectation.text, "verdict": Verdict.NONE, "reason": ""}
    answer |= {"settled": None, "remarks": [], "would_settle": None}
    needed = expectation.quantities()
    absent = sorted({arm for _, arm in needed} - set(arms))
    broken = sorted({f"{arm} seed {s}" for q, arm in needed for s in seeds if math.isnan(values(q, arm, s))})
    if absent:
        return answer | {"reason": f"not run: {', '.join(absent)}"}
    if broken:
        return answer | {"reason": f"without a result: {', '.join(broken)}"}
    step = max(values.step(quantity) for quantity, _ in needed)
    found = expectation.answer(seeds, values, step, history.of({arm for _, arm in needed}))
    answer |= {"verdict": found.verdict, "settled": found.settled, "difference": _numbers(found.found)}
    if found.verdict is Verdict.NONE:
        return answer | {"reason": f"{len(seeds)} seeds; a verdict needs at least {FEWEST_SEEDS}"}
    lost = {arm: values.diverged.get(arm, []) for _, arm in sorted(needed)}
    return answer | {"remarks": remarks(found, seeds, lost), "would_settle": would_settle(found)}


def circumstances(cells: Sequence[Cell], jobs: int) -> dict[str, Any]:
    """When, where and how fast: what another run of the same cells would not repeat.

    Args:
        cells: those of the result.
        jobs: how many ran at a time.
    """
    spent = 0.0
    times: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if cell.state is State.FINISHED:
            cost = cell.cost() | {"wall": cell.wall() or math.nan}
            times.setdefault(cell.arm.name, {})[str(cell.seed)] = {
                name: round(cost[name], digits) if math.isfinite(cost[name]) else None
                for name, digits in (("seconds", 2), ("throughput", 2), ("wall", 2), ("latency", 5))
            }
            spent += next((cost[name] for name in ("wall", "seconds") if math.isfinite(cost[name])), 0.0)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "minutes": round(spent / jobs / 60, 1),
        "jobs": jobs,
        "arms": times,
    }


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    write_whole(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
