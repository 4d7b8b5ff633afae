"""Runs a claim from its file to its verdict."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import wandb
from rich.console import Console
from rich.markup import escape

from callbacks.whole_files import write_whole
from exp.claims.cells import Cell, State, plan, settle
from exp.claims.claim_file import Claim, ClaimError, read_claim
from exp.claims.committed import SummaryError
from exp.claims.display import Display
from exp.claims.executors import Executor, Local
from exp.claims.history import History, recall, remember, still_valid
from exp.claims.pictures import draw
from exp.claims.pilot import pilot_seeds, tell
from exp.claims.remaining import Remaining
from exp.claims.report import COLUMNS, markdown, print_result, rows, say
from exp.claims.results import CIRCUMSTANCES, RESULTS, circumstances, collect, write
from exp.claims.slurm import Slurm, SlurmError
from exp.claims.statistics import Verdict
from exp.claims.summary import summarise
from exp.claims.taken import After
from exp.claims.trials import try_out
from exp.quiet import silence
from exp.report import report_on
from exp.run_state import state_of
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
        folder = options.runs / "claims" / claim.name
        history, looks = _looks(claim, options, extra, folder)
        cells = plan(claim, _chosen(claim, options.arms), history.seeds, options.runs, extra)
        # A cluster takes all cells at a time.
        jobs = options.jobs if options.executor == "slurm" else options.jobs or 1
        if options.dry_run:
            _print_plan(claim, cells, extra, jobs, console)
            return 0
        with _alone(folder):
            if options.plan:
                pilots = plan(claim, _chosen(claim, options.arms), pilot_seeds(claim), options.runs, extra)
                executor = _ready(claim, pilots, options, folder, console)
                _execute(claim, pilots, [], executor, jobs, console)
                tell(claim, pilots, cells, jobs, console)
                return 0 if all(cell.ended for cell in pilots) else 1
            executor = _ready(claim, cells, options, folder, console)
            if done := sum(cell.ended for cell in cells):
                say(console, f"{done} of {len(cells)} cells were finished before")
            result = {}
            for count in looks:
                now = set(history.seeds[:count])
                block = [cell for cell in cells if cell.seed in now]
                later = [cell for cell in cells if cell.seed not in now and not cell.ended]
                _execute(claim, block, later, executor, jobs, console)
                result = collect(claim, block, extra, history)
                write(folder, RESULTS, result)
                remember(folder, history)
                settled = sum(answer["settled"] is not None for answer in result["expectations"])
                if result["failed"] or settled == len(result["expectations"]):
                    break
                if count < looks[-1]:
                    say(console, f"{count} seeds settle {settled} of {len(result['expectations'])} expectations")
            return _conclude(claim, block, result, folder, options, console)
    except (ClaimError, SlurmError, SummaryError) as error:
        print(f"exp: {error}", file=sys.stderr)
        return 2


def _ready(claim: Claim, cells: list[Cell], options: argparse.Namespace, folder: Path, console: Console) -> Executor:
    """Tries the cells, makes them ready to run, and says what runs them.

    Raises:
        ClaimError: an arm does not run, or does not log what it is compared by.
    """
    if options.fresh:
        for cell in cells:
            cell.clear(keep=False)
    try_out(claim, cells, options.jobs or 1, folder, console)
    environment = {"WANDB_RUN_GROUP": f"claims/{claim.name}"}
    for cell in cells:
        cell.command.append(f"--wandb={options.wandb}")
    if options.executor == "slurm":
        return Slurm(folder / "slurm", options.jobs, _pairs(options.slurm), environment)
    return Local(options.jobs or 1, environment, options.wandb != "disabled")


def _looks(claim: Claim, options: argparse.Namespace, extra: list[str], folder: Path) -> tuple[History, list[int]]:
    """The looks that were, and after how many seeds to look from now on.

    Seeds that have been looked at count, whichever are asked for today: else one could choose among them.
    """
    seeds, counts = options.seeds or claim.seeds.listed, claim.seeds.looks
    remembered = recall(folder)
    every = sorted({*seeds, *(seed for history in remembered for seed in history.seeds)})
    today = plan(claim, _chosen(claim, options.arms), every, options.runs, extra) if remembered else []
    before = next((valid for history in remembered if (valid := still_valid(history, today))), None)
    if before is None:
        return History(list(seeds), len(seeds)), [len(seeds)] if options.seeds else counts
    every = [*before.seeds, *(seed for seed in seeds if seed not in before.seeds)]
    # What has been seen is looked at again, and costs nothing.
    more = [len(every)] if options.seeds else [count for count in counts if before.seen < count < len(every)]
    counts = sorted({before.seen, *more, *([len(every)] if len(every) > before.seen else [])})
    return History(every, before.planned, before.looks), counts


def _chosen(claim: Claim, names: list[str] | None) -> Collection[str]:
    """The arms asked for, with those that they take something from."""
    if names is None:
        return claim.arms
    chosen: set[str] = set()
    for name in names:
        if name not in claim.arms:
            raise ClaimError(f"{claim.path}: no arm '{name}'; choose from {', '.join(claim.arms)}")
        chosen |= {name, *_chosen(claim, claim.arms[name].parents)}
    return chosen


def _pairs(options: list[str]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise SlurmError(f"--slurm {option}: sbatch options are KEY=VALUE, such as time=240")
        pairs[key.removeprefix("slurm_")] = int(value) if value.isdigit() else value
    return pairs


def _print_plan(claim: Claim, cells: list[Cell], extra: list[str], jobs: int | None, console: Console) -> None:
    """The command that all cells share, and what each arm and seed adds to it."""
    configs = [f"--config {config}" for config in claim.configs]
    first, *others = (arm.arguments() for arm in claim.arms.values())
    common = [argument for argument in first if all(argument in other for other in others)]
    say(console, " ".join(["python -m exp fit", *configs, shlex.join([*common, *extra])]))
    for arm in claim.arms.values():
        own = [cell for cell in cells if cell.arm is arm]
        if not own:
            continue
        title = arm.name + (" (reference)" if arm.name == claim.reference else "")
        if len(arm.after) == 1 and isinstance(only := arm.after[0], After) and not only.file:
            title += f", after {only.arm}, from its {only.checkpoint} checkpoint"
        elif arm.after:
            title += f", after {', '.join(arm.parents)}, with {', '.join(map(str, arm.after))}"
        say(console, title)
        changes = [argument for argument in arm.arguments() if argument not in common]
        say(console, f"    {shlex.join(changes) or 'changes nothing'}")
        for cell in own:
            say(console, f"    seed {cell.seed}: {cell.state}" + (f" ({cell.reason})" if cell.reason else ""))
    to_run = sum(not cell.ended for cell in cells)
    most = "at most " if len(claim.seeds.looks) > 1 else ""
    say(console, f"{most}{len(cells)} cells, {to_run} to run{Remaining(claim.name, jobs).sentence(cells)}")


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


def _execute(
    claim: Claim, cells: list[Cell], later: list[Cell], executor: Executor, jobs: int | None, console: Console
) -> None:
    """Runs the cells that need it; a failed one does not stop the others."""
    waiting = [cell for cell in cells if not cell.ended]
    running = 0
    with Display(claim, cells, console, jobs, later) as display:
        try:
            while waiting or running:
                for cell, problem in executor.ended():
                    running -= 1
                    cell.state, cell.reason = State.FINISHED, ""
                    if problem:
                        cell.state, cell.reason = State.FAILED, problem
                        if state_of(cell.path) == "diverged":
                            cell.state, cell.reason = State.DIVERGED, f"its loss ceased to be finite; see {cell.log}"
                    display.ended(cell)
                for cell in list(waiting):
                    states = {parent.state for parent in cell.parents}
                    if State.DIVERGED in states:
                        cell.look()
                        waiting.remove(cell)
                    elif lost := [each for each in cell.parents if each.state in (State.FAILED, State.BLOCKED)]:
                        cell.state, cell.reason = State.BLOCKED, f"{lost[0].name} has no checkpoint"
                        waiting.remove(cell)
                    elif executor.room() > 0 and states <= {State.FINISHED}:
                        waiting.remove(cell)
                        running += _start(claim, cell, executor, display)
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


def _start(claim: Claim, cell: Cell, executor: Executor, display: Display) -> int:
    """Starts a cell whose parents have ended; returns how many cells run more than before."""
    try:
        settle(claim, cell)
    except ClaimError as error:
        cell.state, cell.reason = State.BLOCKED, str(error)
        return 0
    if cell.state is State.STALE:
        display.say(f"{cell.name} runs again ({escape(cell.reason)}); the old run is kept in {cell.path.parent}/stale")
        cell.clear(keep=True)
    cell.note(identity=cell.identity)
    executor.start(cell)
    cell.state = State.RUNNING
    display.started(cell)
    return 1


def _conclude(
    claim: Claim,
    cells: list[Cell],
    result: dict[str, Any],
    folder: Path,
    options: argparse.Namespace,
    console: Console,
) -> int:
    """Writes what belongs to a result, and prints it; returns the exit code."""
    around = circumstances(cells, options.jobs or 1)
    write(folder, CIRCUMSTANCES, around)
    pictures = draw(claim, cells, result, folder)
    write_whole(folder / REPORT, markdown(result, around, pictures))
    _log(claim, result, around, pictures, folder, options.wandb)
    print_result(result, around, folder, console)
    finished = [cell.path for cell in cells if cell.state is State.FINISHED]
    if finished and (report := report_on(finished, options.runs, folder)) is not None:
        say(console, f"curves, configs and costs of the cells, for a browser: {report}")
    if result["failed"]:
        return 1
    if options.publish:
        target = Path("docs/claims") / claim.name
        target.mkdir(parents=True, exist_ok=True)
        for path in [folder / RESULTS, folder / CIRCUMSTANCES, folder / REPORT, *pictures]:
            shutil.copy(path, target)
        say(console, f"{target} written; {summarise()[0]}")
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
