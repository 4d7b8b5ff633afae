"""One batch of a run, tried: whether it runs, and what it logs."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from exp.cli import Cli


@dataclass
class Trial:
    """What one batch of each split has shown.

    Args:
        problem: what stopped it, in one line; empty if nothing did.
        metrics: the metrics that the run logs, and their values after that batch.
        monitor: the metric that says which checkpoint is best; None if the run could not even be built.
        mode: which values of it are better, `max` or `min`.
    """

    problem: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    monitor: str | None = None
    mode: str = "max"


def try_first_batch(command: Sequence[str]) -> Trial:
    """Tries one batch of each split of a run, on any device and in one process; nothing is written or printed.

    Args:
        command: what follows `python -m exp fit`.
    """
    trial = Trial()
    said = io.StringIO()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            with contextlib.redirect_stderr(said):
                _run(command, trial)
        except SystemExit:
            trial.problem = said.getvalue().strip().removeprefix("exp: ") or "it ended at once"
        except Exception as error:
            trial.problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return trial


def _run(command: Sequence[str], trial: Trial) -> None:
    here = ["accelerator=auto", "strategy=auto", "devices=1", "num_nodes=1", "precision=32-true", "fast_dev_run=true"]
    # The one step is one of those that are logged.
    quiet = ["log_every_n_steps=1", "enable_progress_bar=false", "enable_model_summary=false"]
    cli = Cli([*command, *(f"--trainer.{setting}" for setting in [*here, *quiet])], "fit")
    trial.monitor = cli.checkpoints.monitor or getattr(cli.model, "monitor", None)
    trial.mode = str(cli.checkpoints.mode or getattr(cli.model, "monitor_mode", "max"))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cli.checkpoints.folder = Path(folder)
        cli.trainer.fit(cli.model, cli.datamodule)
        logged = {**cli.trainer.callback_metrics, **cli.trainer.logged_metrics}
        if cli.config.test and cli.datamodule.has("test"):
            cli.trainer.test(cli.model, cli.datamodule, verbose=False)
            logged |= cli.trainer.callback_metrics
    trial.metrics = {name: float(value) for name, value in logged.items()}
