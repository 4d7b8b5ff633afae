"""One batch of every arm before anything long runs: what would fail, or miss its metric, is known in seconds."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from callbacks.whole_files import write_whole
from exp.claims.cells import Cell, missing_metric
from exp.claims.claim_file import Claim
from exp.claims.first_batch import try_first_batch
from exp.claims.taken import After
from exp.processes import die_with_parent
from exp.run_directory import fingerprint


def try_out(claim: Claim, cells: list[Cell], jobs: int, folder: Path, console: Console) -> None:
    """Tries every arm that has something to run, and that has not been tried as it is.

    Arms that need a file of another one for more than weights cannot be tried before that has run; what they take of
    results is tried as the claim's file has it.

    Args:
        claim: the claim.
        cells: all of its cells.
        jobs: how many arms are tried at a time.
        folder: where it is kept which arms have been tried, and what they logged.
        console: says that it takes a while.

    Raises:
        ClaimError: an arm does not run, or does not log a metric that it is compared by.
    """
    finished = {cell.arm.name for cell in cells if cell.ended}
    todo = [
        cell
        for cell in cells
        if cell.seed == cells[0].seed
        and cell.arm.name not in finished
        and not any(isinstance(taken, After) and (taken.key != "weights" or taken.file) for taken in cell.arm.after)
    ]
    record = folder / "tried.json"
    logged = _logged(record)
    new = [cell for cell in todo if _same(cell) not in logged]
    if new:
        with console.status(f"trying one batch of {len(new)} arms"), _pool(jobs) as pool:
            tried = list(pool.map(try_first_batch, [cell.command for cell in new]))
        for cell, trial in zip(new, tried, strict=True):
            if trial.problem:
                raise claim.error(f"arm '{cell.arm.name}' does not run: {trial.problem}", *cell.arm.place)
            logged[_same(cell)] = set(trial.metrics)
        kept = {same: sorted(metrics) for same, metrics in logged.items()}
        write_whole(record, json.dumps(kept, indent=1) + "\n")
    for cell in todo:
        _check(claim, cell, logged[_same(cell)])


def _check(claim: Claim, cell: Cell, metrics: set[str]) -> None:
    for metric, arms in claim.metrics().items():
        if cell.arm.name in arms and metric not in metrics:
            raise missing_metric(claim, metric, cell.arm.name, metrics)


def _same(cell: Cell) -> str:
    """What two cells have in common if what holds of one's first batch holds of the other's: all but the seed."""
    config = {key: value for key, value in cell.identity["config"].items() if key != "seed_everything"}
    return fingerprint({"cell": cell.identity | {"config": config}})


def _logged(record: Path) -> dict[str, set[str]]:
    """The metrics of arms that have been tried; of a record that cannot be read, none."""
    try:
        content: dict[str, Any] = json.loads(record.read_bytes())
        return {same: {str(metric) for metric in metrics} for same, metrics in content.items()}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return {}


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Forked, a trial starts at once; nothing here has touched a GPU or started threads that would not survive it.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork"), initializer=die_with_parent)
