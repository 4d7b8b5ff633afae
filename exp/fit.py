"""`python -m exp fit`: trains, tests the best checkpoint, and says where everything lies."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import BadSamples, Cost
from callbacks.reports import Place
from datamodules import DataModule
from exp.checkpoint_io import read_checkpoint
from exp.cli import Cli, ConfigError, UsageError, is_child, place_reports, resolve
from exp.errors import exit_code
from exp.loggers import MetricsTable
from exp.pixels import hand_over, hand_over_checkpoint
from exp.quiet import silence
from exp.run_directory import Run, RunError, open_run
from exp.summary import print_start, print_summary
from exp.tracking import Tracker, new_wandb_id, wandb_logger
from exp.weights import check_weights, part_of, start_from, weight_files


def main(argv: list[str]) -> int:
    """Runs `fit`; the exit code is 0, 2 for a mistake in the command, 75 for a stop by signal, else 1."""
    silence()
    cli = Cli(argv, "fit")
    with exit_code(cli) as outcome:
        # What is missing is missed before there is a run directory.
        if isinstance(cli.datamodule, DataModule):
            cli.datamodule.setup("fit")
        check_weights(cli)
        run = _agree_on_run(cli)
        if run.finished:
            print(f"{run.path} is finished; nothing to do")
            return 0
        if run.checkpoint is None:
            cli.ask_hubs(part_of(cli, part) for part in weight_files(cli))
        try:
            _train(cli, run)
        finally:
            _close_trackers(cli)
    return outcome.code


def _close_trackers(cli: Cli) -> None:
    for logger in cli.trainer.loggers:
        if isinstance(logger, Tracker):
            logger.close()


def _train(cli: Cli, run: Run) -> None:
    trainer = cli.trainer
    leads = trainer.is_global_zero and not is_child()
    trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
    cli.checkpoints.folder = run.checkpoints
    cli.checkpoints.config = cli.config_text()
    if leads:
        (run.path / "config.yaml").write_text(cli.config_text())
        run.update(status="running", wandb_id=run.state().get("wandb_id") or new_wandb_id())
    table = MetricsTable(run.path / "metrics.csv")
    if leads:
        # A run that was killed before its first checkpoint starts afresh.
        table.rewind(_step_of(run.checkpoint) if run.checkpoint is not None else 0)
    loggers: list[Any] = [table]
    if leads and not trial:
        wandb = wandb_logger(cli.config.wandb, run.path, cli.experiment, run.state().get("wandb_id", ""), cli.plain)
        loggers += [wandb] if wandb is not None else []
    given = cli.user_loggers
    loggers += given if isinstance(given, list) else [given] if given not in (None, True, False) else []
    trainer.loggers = loggers
    cost = Cost()
    # Checkpoints stay last, so that what they save includes what every other callback did.
    trainer.callbacks[-1:-1] = [BadSamples(run.path / "bad_samples.csv"), Length(run), cost]  # type: ignore[attr-defined]
    place_reports(trainer, Place(run.plots, run.path, run.path.parent.name, table.series))
    if run.checkpoint is None:
        started = {part: (path, start_from(cli, path, part)) for part, path in weight_files(cli).items()}
        for path, start in started.values():
            if leads and (message := start.message()):
                print(f"{path}: {message}")
        hand_over(cli, {part: (path, start.pixels) for part, (path, start) in started.items()}, leads)
    else:
        hand_over_checkpoint(cli, run.checkpoint, read_checkpoint(run.checkpoint, tensors=False), leads)
    if leads:
        print_start(cli, run)
    # What is alive now stays alive: the garbage collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    trainer.fit(cli.model, cli.datamodule, ckpt_path=str(run.checkpoint) if run.checkpoint else None, weights_only=True)
    results: dict[str, float] = {}
    if cli.config.test and not trial and cli.datamodule.has("test"):
        best = cli.checkpoints.best or cli.checkpoints.last
        results = dict(
            trainer.test(cli.model, cli.datamodule, ckpt_path=str(best), weights_only=True, verbose=False)[0]
        )
    if leads:
        spent = cost.measure(cli.model.network)
        run.update(status="finished", test=results, best=cli.checkpoints.best_score, cost=spent)
        _close_trackers(cli)
        print_summary(cli, run, results, spent)


class Length(Callback):
    """Notes in `run.json` how long the run is going to be, for whoever watches it from outside.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the number of optimiser steps and epochs."""
        if trainer.is_global_zero and not is_child():
            steps = trainer.estimated_stepping_batches
            self.run.update(total_steps=steps if steps != float("inf") else None, max_epochs=trainer.max_epochs)


def _as_today(config: Path) -> dict[str, Any] | None:
    """What a run's own config resolves to today; None if it no longer does."""
    try:
        return resolve([f"--config={config}"])
    except ConfigError:
        return None


def _step_of(checkpoint: Path) -> int:
    return int(read_checkpoint(checkpoint, tensors=False)["global_step"])


def _agree_on_run(cli: Cli) -> Run:
    """The same run directory on every process: chosen by the first, told to the others."""
    trainer = cli.trainer
    if is_child():
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
        except RunError as error:
            problem = str(error)
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
