"""`python -m exp fit`: trains, tests the best checkpoint, and says where everything lies."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from callbacks import BadSamples, Cost
from callbacks.reports import Place
from datamodules import DataModule
from exp.arguments import option, without_option
from exp.beforehand import check
from exp.checkpoint_io import CheckpointError, read_checkpoint
from exp.cli import Cli, resolve
from exp.errors import exit_code
from exp.finding import found_first
from exp.pixels import hand_over, hand_over_checkpoint
from exp.processes import is_started_by_main
from exp.quiet import silence
from exp.record import Record
from exp.report import report_on
from exp.resuming import goes_on, resumption
from exp.run_directory import Run, RunError, open_run
from exp.summary import print_start, print_summary
from exp.tracking import Tracker, new_wandb_id, wandb_logger
from exp.trainers import place_reports
from exp.usage import ConfigError, UsageError
from exp.weights import check_weights, part_of, start_from, weight_files


def main(argv: list[str]) -> int:
    """Runs `fit`; the exit code is 0, 2 for a mistake in the command, 75 for a stop by signal, else 1."""
    silence()
    find, found = option(argv, "--find"), dict[str, Any]()
    if find is not None and not is_started_by_main():
        argv, found = found_first(find, without_option(argv, "--find"), _start)
    cli = Cli(argv, "fit")
    with exit_code(cli) as outcome:
        # What is missing is missed before there is a run directory.
        if isinstance(cli.datamodule, DataModule):
            cli.datamodule.setup("fit")
        check_weights(cli)
        check(cli)
        run = _agree_on_run(cli)
        run.facts |= {"found": found} if found else {}
        if run.finished:
            print(f"{run.path} is finished; nothing to do")
            return 0
        _train(cli, run, _leads(cli))
    return outcome.code


def _leads(cli: Cli) -> bool:
    """Whether this process is the one that writes and talks."""
    return cli.trainer.is_global_zero and not is_started_by_main()


def _train(cli: Cli, run: Run, leads: bool) -> None:
    trainer, checkpoints = cli.trainer, cli.checkpoints
    cost, spent = Cost(), dict[str, float]()
    results: Mapping[str, float] = {}
    with Record(cli, run, leads) as record, _closing_trackers(cli):
        _prepare(cli, run, record, cost)
        # What is alive now stays alive: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        start = str(run.checkpoint) if run.checkpoint else None
        trainer.fit(cli.model, cli.datamodule, ckpt_path=start, weights_only=True)
        # Where nothing was left to train.
        record.begin()
        if cli.config.test and not trainer.fast_dev_run and cli.datamodule.has("test"):  # type: ignore[attr-defined]
            best = str(checkpoints.best or checkpoints.last)
            (results,) = trainer.test(cli.model, cli.datamodule, ckpt_path=best, weights_only=True, verbose=False)
        if leads:
            spent = cost.measure(cli.model.network, timed=True)
            record.finish(test=dict(results), best=checkpoints.best_score, cost=spent)
    if leads:
        report_on([run.path], Path(cli.config.runs), run.path)
        print_summary(cli, run, dict(results), spent)
        if missing := record.missing():
            raise RunError(f"{missing}: removed since it was written, and lost; all else that the run leaves is there")


@contextmanager
def _closing_trackers(cli: Cli) -> Iterator[None]:
    try:
        yield
    finally:
        for logger in cli.trainer.loggers:
            if isinstance(logger, Tracker):
                logger.close()


def _prepare(cli: Cli, run: Run, record: Record, cost: Cost) -> None:
    """Puts together what the run goes on from, and what acts on it; refuses what does not fit."""
    trainer = cli.trainer
    if run.checkpoint is not None:
        content = read_checkpoint(run.checkpoint, tensors=False)
        record.start = resumption(cli, run, content)
        _put_beside(cli, record.leads)
        run.notes += [f"from step {record.start.step} on: {change}" for change in record.start.changes]
        hand_over_checkpoint(cli, run.checkpoint, content, record.leads)
    else:
        _start(cli, record.leads)
    # Checkpoints stay last, so that what they save includes what every other callback did.
    trainer.callbacks[-1:-1] = [BadSamples(run.path / "bad_samples.csv"), cost]  # type: ignore[attr-defined]
    trainer.callbacks.insert(0, record)  # type: ignore[attr-defined]
    place_reports(trainer, Place(run.plots, run.path, run.path.parent.name, record.table.series))
    if record.leads:
        print_start(cli, run)
    trainer.loggers = _loggers(cli, run, record)


def _start(cli: Cli, leads: bool = False) -> None:
    """Gives the model the weights that a training starts from.

    Args:
        cli: the command.
        leads: whether this process is the one that talks.
    """
    files = weight_files(cli)
    cli.ask_hubs(part_of(cli, part) for part in files)
    if cli.model.distillation is not None:
        # What learns beside the network depends on what both networks return.
        cli.model.distillation.attach(cli.model, cli.datamodule)
    started = {part: (path, start_from(cli, path, part)) for part, path in files.items()}
    for path, start in started.values():
        if leads and (message := start.message()):
            print(f"{path}: {message}")
    hand_over(cli, {part: (path, start.pixels) for part, (path, start) in started.items()}, leads)


def _put_beside(cli: Cli, leads: bool) -> None:
    """Gives the parts that no checkpoint has their weights again."""
    files = {part: path for part, path in weight_files(cli).items() if part in cli.model.beside_checkpoints()}
    from_hubs = [part_of(cli, part) for part in cli.model.beside_checkpoints() if part not in files]
    theirs = {id(parameter) for part in from_hubs for parameter in part.parameters()}
    cli.ask_hubs([nn.ParameterList(each for each in cli.model.parameters() if id(each) not in theirs)])
    hand_over(cli, {part: (path, start_from(cli, path, part).pixels) for part, path in files.items()}, leads)


def _loggers(cli: Cli, run: Run, record: Record) -> list[Any]:
    """The table of metrics, W&B, and the loggers that the config names."""
    loggers: list[Any] = [record.table]
    if record.leads and not cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        run.facts["wandb_id"] = run.facts.get("wandb_id") or new_wandb_id()
        wandb = wandb_logger(cli.config.wandb, run.path, cli.experiment, run.facts["wandb_id"], cli.plain)
        if wandb is not None:
            if record.start.changes:
                wandb.attempt(lambda: wandb.experiment.config.update(cli.plain, allow_val_change=True))
            loggers.append(wandb)
    given = cli.user_loggers
    return loggers + (given if isinstance(given, list) else [given] if given not in (None, True, False) else [])


def _as_today(config: Path) -> dict[str, Any] | None:
    """What a run's own config resolves to today; None if it no longer does."""
    try:
        return resolve([f"--config={config}"])
    except ConfigError:
        return None


def _agree_on_run(cli: Cli) -> Run:
    """The same run directory on every process: chosen by the first, told to the others."""
    trainer = cli.trainer
    if is_started_by_main():
        told = json.loads(os.environ["EXP_RUN"])
        return Run(Path(told["path"]), Path(told["checkpoint"]) if told["checkpoint"] else None, told["finished"])
    environment = getattr(trainer.strategy, "cluster_environment", None)
    externally_started = trainer.world_size > 1 and environment and environment.creates_processes_externally
    if externally_started:
        # torchrun and SLURM start all processes at once: they must be connected before they can agree.
        trainer.strategy.setup_environment()
    run, problem = None, None
    if trainer.is_global_zero:
        try:
            run = open_run(
                Path(cli.config.runs), cli.experiment, cli.config.version, cli.config.resume, cli.plain, _as_today
            )
            if (
                run.finished
                and run.checkpoint is not None
                and goes_on(cli, run, read_checkpoint(run.checkpoint, tensors=False))
            ):
                run.finished = False
        except (RunError, CheckpointError) as error:
            run, problem = None, str(error)
    if externally_started:
        told = (str(run.path), str(run.checkpoint or ""), run.finished) if run else None
        told, problem = trainer.strategy.broadcast((told, problem))
        if told and run is None:
            run = Run(Path(told[0]), Path(told[1]) if told[1] else None, told[2])
    if run is None:
        raise UsageError(problem or "no run directory")
    os.environ["EXP_RUN"] = json.dumps(
        {"path": str(run.path), "checkpoint": str(run.checkpoint or ""), "finished": run.finished}
    )
    return run
