"""From finished cells to a result: values, estimates, verdicts, and the files that hold them."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
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
from exp.claims.published import config_digest
from exp.claims.statistics import FEWEST_SEEDS, Estimate, Verdict, all_of, estimate, smallest_step

# What the same cells give on any day; `circumstances.json` holds what they do not.
RESULTS = "results.json"
CIRCUMSTANCES = "circumstances.json"


def collect(claim: Claim, cells: Sequence[Cell], extra: Sequence[str]) -> dict[str, Any]:
    """The result of a claim, from the cells that were asked for: the same for the same cells, bit for bit.

    A cell that has not finished, or whose metric is missing or not finite, takes the verdict from every expectation
    that needs its arm.

    Args:
        claim: the claim.
        cells: planned cells, of some or all arms and seeds.
        extra: overrides from the command line.

    Returns:
        What `results.json` holds.
    """
    seeds = sorted({cell.seed for cell in cells})
    by_place = {(cell.arm.name, cell.seed): cell for cell in cells}
    arms = [name for name in claim.arms if any(cell.arm.name == name for cell in cells)]
    measured: dict[tuple[str, str, int], float] = {}
    for (arm, seed), cell in by_place.items():
        if cell.state is not State.FINISHED:
            continue
        measured |= {(quantity, arm, seed): spent for quantity, spent in cell.cost().items()}
        for metric, needed in claim.metrics().items():
            if arm in needed:
                measured[metric, arm, seed] = cell.value(metric, claim.at, claim.better) * claim.scale(metric)

    def value(quantity: str, arm: str, seed: int) -> float:
        return measured.get((quantity or claim.metric, arm, seed), math.nan)

    steps = {
        metric: smallest_step([v for (q, _, _), v in measured.items() if q == metric and math.isfinite(v)])
        for metric in claim.metrics()
        if not counts_compute(metric)
    }
    table = {arm: _arm(claim, arm, seeds, steps.get(claim.metric, 0.0), value) for arm in arms}
    answers = [_answer(claim, expectation, seeds, arms, steps, value) for expectation in claim.expectations]
    return {
        "claim": claim.claim,
        "source": claim.source,
        "notes": claim.notes,
        "file": str(claim.path),
        "metric": claim.metric,
        "at": claim.at,
        "better": claim.better,
        "unit": claim.unit.strip(),
        "seeds": seeds,
        "reference": claim.reference,
        "overrides": list(extra),
        "verdict": all_of([Verdict(answer["verdict"]) for answer in answers]),
        "expectations": answers,
        "arms": table,
        "failed": [
            {"cell": c.name, "reason": c.reason or str(c.state)} for c in cells if c.state is not State.FINISHED
        ],
        "configs": {path: config_digest(Path(path)) for path in claim.configs},
        "code": merged(cell.identity["code"] for cell in cells),
    }


def _arm(claim: Claim, arm: str, seeds: list[int], step: float, value: Any) -> dict[str, Any]:
    values = {seed: value("", arm, seed) for seed in seeds}
    finite = [v for v in values.values() if math.isfinite(v)]
    pairs = [(v, value("", claim.reference, seed)) for seed, v in values.items()]
    differences = [a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    costs = {}
    for cost in ("params", "macs"):
        known = [c for seed in seeds if math.isfinite(c := value(cost, arm, seed))]
        costs[cost] = sum(known) / len(known) if known else None
    return {
        "overrides": claim.arms[arm].overrides,
        "after": claim.arms[arm].after.arm if claim.arms[arm].after else None,  # type: ignore[union-attr]
        "values": {str(seed): v if math.isfinite(v) else None for seed, v in values.items()},
        **_numbers(estimate(finite, step) if finite else None),
        "difference": _numbers(estimate(differences, step) if differences and arm != claim.reference else None),
        **costs,
    }


def _numbers(found: Estimate | None) -> dict[str, Any]:
    return {
        "mean": found.mean if found else None,
        "interval": [found.low, found.high] if found and found.low is not None else None,
    }


def _answer(
    claim: Claim, expectation: Expectation, seeds: list[int], arms: list[str], steps: dict[str, float], value: Any
) -> dict[str, Any]:
    """The verdict on one expectation, or the reason why there is none."""
    answer: dict[str, Any] = {"expect": expectation.text, "verdict": Verdict.NONE, "reason": ""}
    needed = expectation.quantities()
    absent = sorted({arm for _, arm in needed} - set(arms))
    broken = sorted({f"{arm} seed {s}" for q, arm in needed for s in seeds if not math.isfinite(value(q, arm, s))})
    if absent:
        return answer | {"reason": f"not run: {', '.join(absent)}"}
    if broken:
        return answer | {"reason": f"without a result: {', '.join(broken)}"}
    step = max(steps.get(quantity or claim.metric, 0.0) for quantity, _ in needed)
    verdict, found = expectation.answer(seeds, value, step)
    answer |= {"verdict": verdict, "difference": _numbers(found)}
    if verdict is Verdict.NONE:
        answer["reason"] = f"{found.count} seeds; a verdict needs at least {FEWEST_SEEDS}"
    return answer


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
                name: round(cost[name], 2) if math.isfinite(cost[name]) else None
                for name in ("seconds", "throughput", "wall")
            }
            spent += next((cost[name] for name in ("wall", "seconds") if math.isfinite(cost[name])), 0.0)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": _machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "minutes": round(spent / jobs / 60, 1),
        "jobs": jobs,
        "arms": times,
    }


def _commit() -> str:
    """The commit of the working tree, with `+` if code or configs have been changed since."""
    commit = _git("rev-parse", "--short", "HEAD")
    return commit + "+" if commit and _git("diff", "--name-only", "HEAD", "--", "*.py", "*.yaml") else commit


def _git(*arguments: str) -> str:
    try:
        asked = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _machine() -> str:
    cores = f"{os.cpu_count()} CPU cores"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([cores, *(f"{gpus.count(name)} x {name}" for name in sorted(set(gpus)))])


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    write_whole(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
