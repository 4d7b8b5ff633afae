"""Runs a claim from its file to its verdict."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import wandb
from rich.console import Console
from rich.markup import escape

from callbacks.whole_files import write_whole
from exp.claims.cells import Cell, State, missing_metric, plan, trial
from exp.claims.claim_file import Claim, ClaimError, read_claim
from exp.claims.committed import SummaryError
from exp.claims.display import Display
from exp.claims.executors import Executor, Local
from exp.claims.pictures import draw
from exp.claims.report import COLUMNS, markdown, print_result, rows
from exp.claims.results import CIRCUMSTANCES, RESULTS, circumstances, collect, write
from exp.claims.slurm import Slurm, SlurmError
from exp.claims.statistics import Verdict
from exp.claims.summary import summarise
from exp.processes import die_with_parent
from exp.quiet import silence
from exp.tracking import new_wandb_id, wandb_logger

CODES = {Verdict.HOLDS: 0, Verdict.DOES_NOT_HOLD: 3, Verdict.INCONCLUSIVE: 4, Verdict.NONE: 5}
REPORT = "report.md"


def run(options: argparse.Namespace, extra: list[str]) -> int:
    """Runs what the command asks for; returns its exit code."""
    silence()
    # In a log file, tables take the width that they need.
    console = Console(width=None if sys.stdout.isatty() else 160, emoji=False)
    try:
        claim = read_claim(options.config)
        cells = plan(claim, _chosen(claim, options.arms), options.seeds or claim.seeds.listed, options.runs, extra)
        if options.dry_run:
            _print_plan(claim, cells, extra, console)
            return 0
        folder = options.runs / "claims" / claim.name
        with _alone(folder):
            if options.fresh:
                for cell in cells:
                    cell.clear(keep=False)
            _try_out(claim, cells, options.jobs or 1, console)
            environment = {"WANDB_RUN_GROUP": f"claims/{claim.name}"}
            for cell in cells:
                cell.command.append(f"--wandb={options.wandb}")
            executor: Executor
            if options.executor == "slurm":
                executor = Slurm(folder / "slurm", options.jobs, _pairs(options.slurm), environment)
            else:
                executor = Local(options.jobs or 1, environment)
            _execute(claim, cells, executor, console)
            return _conclude(claim, cells, extra, folder, options, console)
    except (ClaimError, SlurmError, SummaryError) as error:
        print(f"exp: {error}", file=sys.stderr)
        return 2


def _chosen(claim: Claim, names: list[str] | None) -> Collection[str]:
    """The arms asked for, with those that they start from."""
    if names is None:
        return claim.arms
    chosen: set[str] = set()
    for name in names:
        if name not in claim.arms:
            raise ClaimError(f"{claim.path}: no arm '{name}'; choose from {', '.join(claim.arms)}")
        arm = claim.arms[name]
        chosen.add(name)
        while arm.after:
            arm = claim.arms[arm.after.arm]
            chosen.add(arm.name)
    return chosen


def _pairs(options: list[str]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise SlurmError(f"--slurm {option}: sbatch options are KEY=VALUE, such as time=240")
        pairs[key.removeprefix("slurm_")] = int(value) if value.isdigit() else value
    return pairs


def _print_plan(claim: Claim, cells: list[Cell], extra: list[str], console: Console) -> None:
    """The command that all cells share, and what each arm and seed adds to it."""
    configs = [f"--config {config}" for config in claim.configs]
    first, *others = (arm.arguments() for arm in claim.arms.values())
    common = [argument for argument in first if all(argument in other for other in others)]
    _say(console, " ".join(["python -m exp fit", *configs, shlex.join([*common, *extra])]))
    for arm in claim.arms.values():
        own = [cell for cell in cells if cell.arm is arm]
        if not own:
            continue
        title = arm.name + (" (reference)" if arm.name == claim.reference else "")
        title += f", after {arm.after.arm}, from its {arm.after.checkpoint} checkpoint" if arm.after else ""
        _say(console, title)
        changes = [argument for argument in arm.arguments() if argument not in common]
        _say(console, f"    {shlex.join(changes) or 'changes nothing'}")
        for cell in own:
            _say(console, f"    seed {cell.seed}: {cell.state}" + (f" ({cell.reason})" if cell.reason else ""))
    to_run = sum(cell.state is not State.FINISHED for cell in cells)
    _say(console, f"{len(cells)} cells, {to_run} to run")


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One command at a time works on a claim."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ClaimError(f"{folder}: another compare is working on this claim") from None
        yield


def _try_out(claim: Claim, cells: list[Cell], jobs: int, console: Console) -> None:
    """One batch of every arm that has something to run: what would fail, or miss its metric, is known in seconds.

    Arms that need the checkpoint of another one for more than weights cannot be tried before that has run.

    Raises:
        ClaimError: an arm does not run, or does not log a metric that it is compared by.
    """
    finished = {cell.arm.name for cell in cells if cell.state is State.FINISHED}
    todo = [
        cell
        for cell in cells
        if cell.seed == cells[0].seed
        and cell.arm.name not in finished
        and (cell.arm.after is None or cell.arm.after.key == "weights")
    ]
    if not todo:
        return
    with console.status(f"trying one batch of {len(todo)} arms"), _pool(jobs) as pool:
        outcomes = list(pool.map(_outcome, todo))
    for cell, (problem, metrics) in zip(todo, outcomes, strict=True):
        if problem:
            raise claim.error(f"arm '{cell.arm.name}' does not run: {problem}", *cell.arm.place)
        for metric, arms in claim.metrics().items():
            if cell.arm.name in arms and metric not in metrics:
                raise missing_metric(claim, metric, cell.arm.name, metrics)


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Forked, a trial starts at once; nothing here has touched a GPU or started threads that would not survive it.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork"), initializer=die_with_parent)


def _outcome(cell: Cell) -> tuple[str, set[str]]:
    """What stopped a cell's trial, or the metrics that it logged; what it prints is kept apart."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        said = _Said()
        try:
            with contextlib.redirect_stderr(said):
                return "", trial(cell)
        except SystemExit:
            return said.text.strip().removeprefix("exp: ") or "it ended at once", set()
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())}", set()


class _Said:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""


def _execute(claim: Claim, cells: list[Cell], executor: Executor, console: Console) -> None:
    """Runs the cells that need it; a failed one does not stop the others."""
    waiting = [cell for cell in cells if cell.state is not State.FINISHED]
    if len(waiting) < len(cells):
        console.print(f"{len(cells) - len(waiting)} of {len(cells)} cells were finished before", highlight=False)
    running = 0
    with Display(claim, cells, console) as display:
        try:
            while waiting or running:
                for cell, problem in executor.ended():
                    running -= 1
                    cell.state, cell.reason = (State.FAILED, problem) if problem else (State.FINISHED, "")
                    display.ended(cell)
                for cell in list(waiting):
                    if cell.parent and cell.parent.state in (State.FAILED, State.BLOCKED):
                        cell.state, cell.reason = State.BLOCKED, f"{cell.parent.name} has no checkpoint"
                        waiting.remove(cell)
                    elif executor.room() > 0 and (cell.parent is None or cell.parent.state is State.FINISHED):
                        _start(cell, executor, display)
                        waiting.remove(cell)
                        running += 1
                display.refresh()
                time.sleep(0.2)
        except BaseException:
            # The cells get no second signal while they save; a second Ctrl-C ends them with this process.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _wait)
            display.say("stopping: running cells save their state ...")
            executor.stop()
            raise


def _wait(number: int, frame: FrameType | None) -> None:
    """Goes on with what is under way."""


def _start(cell: Cell, executor: Executor, display: Display) -> None:
    if cell.state is State.STALE:
        display.say(f"{cell.name} runs again ({escape(cell.reason)}); the old run is kept in {cell.path.parent}/stale")
        cell.clear(keep=True)
    cell.note(identity=cell.identity)
    executor.start(cell)
    cell.state = State.RUNNING
    display.started(cell)


def _conclude(
    claim: Claim, cells: list[Cell], extra: list[str], folder: Path, options: argparse.Namespace, console: Console
) -> int:
    """Writes and prints the result; returns the exit code."""
    result, around = collect(claim, cells, extra), circumstances(cells)
    write(folder, RESULTS, result)
    write(folder, CIRCUMSTANCES, around)
    pictures = draw(claim, cells, result, folder)
    write_whole(folder / REPORT, markdown(result, around, pictures))
    _log(claim, result, around, pictures, folder, options.wandb)
    print_result(result, around, folder, console)
    if result["failed"]:
        return 1
    if options.publish:
        target = Path("docs/claims") / claim.name
        target.mkdir(parents=True, exist_ok=True)
        for path in [folder / RESULTS, folder / CIRCUMSTANCES, folder / REPORT, *pictures]:
            shutil.copy(path, target)
        _say(console, f"{target} written; {summarise()[0]}")
    return CODES[Verdict(result["verdict"])]


def _log(
    claim: Claim, result: dict[str, Any], around: dict[str, Any], pictures: list[Path], folder: Path, mode: Any
) -> None:
    """The summary run of the claim's W&B group."""
    note = folder / ".wandb_id"
    if not note.exists():
        write_whole(note, new_wandb_id())
    os.environ["WANDB_RUN_GROUP"] = f"claims/{claim.name}"
    logger = wandb_logger(
        mode, folder, "claims", note.read_text(), {k: result[k] for k in ("claim", "seeds", "metric")}
    )
    if logger is None:
        return

    def tell() -> None:
        run = logger.experiment
        run.log({"arms": wandb.Table(list(COLUMNS), [list(row) for row in rows(result, around)])})
        run.log({path.stem: wandb.Image(str(path)) for path in pictures})
        run.summary["verdict"] = str(result["verdict"])
        for answer in result["expectations"]:
            run.summary[answer["expect"]] = str(answer["verdict"])

    logger.attempt(tell)
    logger.close()
