"""What a run writes down of itself while it trains: its config, how it stands, what changed and what was logged."""

from __future__ import annotations

import inspect
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import NonFiniteLoss, Preempted
from callbacks.checkpoints import training_samples
from callbacks.whole_files import write_whole
from exp.cli import Cli
from exp.loggers import MetricsTable
from exp.resuming import Resumption
from exp.run_directory import Run, RunError
from exp.run_state import CONFIG_FILE
from exp.signals import Stopped
from exp.surroundings import surroundings
from lightning_modules.internals import Clock, unlogged_row


class Record(Callback):
    """Keeps `config.yaml`, `run.json` and `metrics.csv` of a run.

    Nothing is written before training starts, so that a command that is refused leaves a run as it was. What somebody
    removes while the run goes on is written again, and what cannot be is named.

    As a context, it notes how a run ends that does not finish.

    Args:
        cli: the command.
        run: its run.
        leads: whether this process is the one that writes.
    """

    def __init__(self, cli: Cli, run: Run, leads: bool) -> None:
        self.run, self.leads, self.trainer = run, leads, cli.trainer
        self.config, self.checkpoints = cli.config_text(), cli.checkpoints
        self.checkpoints.folder, self.checkpoints.config = run.checkpoints, self.config
        self.table = MetricsTable(run.path / "metrics.csv")
        run.notes += [self.table.damage] if self.table.damage else []
        # Where the run goes on.
        self.start = Resumption()
        self.begun = False
        self._model, self._data = cli.model, cli.datamodule
        self._since, self._before = time.monotonic(), _seconds(run.facts.get("seconds"))
        self._as_configured: dict[Callback, dict[str, Any]] = {}

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or not self.leads:
            return
        stopped = isinstance(error, Preempted | Stopped | KeyboardInterrupt)
        if not self.begun and self.run.is_new and not stopped:
            # Nothing is left of what never began.
            self.run.remove()
        elif (self.begun or stopped) and self.run.still_there():
            try:
                status = "stopped" if stopped else "diverged" if isinstance(error, NonFiniteLoss) else "failed"
                self.run.update(status=status, step=self.trainer.global_step, seconds=self.seconds)
            except OSError as problem:
                print(f"exp: {self.run.state_file} could not be written: {problem.strerror}", file=sys.stderr)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes what the command gave the callbacks: some restore their options with their state."""
        if any(change.key.startswith("trainer.callbacks") for change in self.start.changes):
            self._as_configured = {each: _arguments(each) for each in trainer.callbacks}  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the callbacks what the command says."""
        for callback, arguments in self._as_configured.items():
            for name, value in arguments.items():
                setattr(callback, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the config and how long the run is going to be, unless the checkpoint counts other steps.

        Raises:
            RunError: an epoch has another number of steps than it had, or of samples that are not through.
        """
        clock = Clock(trainer)
        self._refuse_other_counts("steps an epoch", self.checkpoints.steps_per_epoch, clock.steps_per_epoch)
        if self.start.in_mid_epoch:
            self._refuse_other_counts("training samples", self.checkpoints.training_samples, training_samples(trainer))
        self.begin(total_steps=clock.total_steps, max_epochs=trainer.max_epochs)

    def _refuse_other_counts(self, what: str, before: int | None, now: int | None) -> None:
        if self.run.checkpoint is None or before in (None, now):
            return
        causes = [str(each) for each in self.start.changes if each.key.startswith(("data", "trainer"))]
        raise RunError(
            f"{self.run.checkpoint} was made with {before} {what}, and now there are {now} "
            f"({'; '.join(causes) or 'the training data are others'}): schedules and the order of the samples are "
            f"counted in them; start a new training from its weights by --weights={self.run.checkpoint}"
        )

    def begin(self, **facts: Any) -> None:
        """Writes what is true from here on; once.

        Args:
            facts: for `run.json`.
        """
        if self.begun:
            return
        self.begun = True
        if not self.leads:
            return
        run, start = self.run, self.start
        history = [each for each in _listed(run.facts.get("changes")) if each["step"] < start.step]
        if start.changes:
            history.append({"step": start.step, "changes": [str(change) for change in start.changes]})
        facts |= {"changes": history} if history or "changes" in run.facts else {}
        facts |= {"monitor": self.checkpoints.monitor, "mode": self.checkpoints.mode, **self._about()}
        write_whole(run.path / CONFIG_FILE, self.config)
        run.update(status="unfinished", fingerprint=run.fingerprint, **facts)
        self.table.rewind(start.step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the row of the step that ends: a run that is killed before Lightning does goes on behind it."""
        row = unlogged_row(trainer)
        if row is not None:
            self.table.log_metrics(*row)
        if self.leads and trainer.state.fn == "fit":
            self.keep()
            # The checkpoint of a new best score is taken when it is known.
            if self.begun and self.run.facts.get("best") != self.checkpoints.best_score:
                self.run.update(best=self.checkpoints.best_score, seconds=self.seconds)

    def keep(self) -> None:
        """Writes what is no longer there.

        Raises:
            RunError: another process has taken the run's place.
        """
        if not self.begun:
            return
        run = self.run
        if not run.still_there():
            removed = not run.state_file.exists()
            run.take_again()
            if removed:
                lost = "earlier checkpoints, pictures and the offline W&B run are lost"
                print(f"exp: {run.path} was removed while it was trained: made again; {lost}", file=sys.stderr)
        if not (run.path / CONFIG_FILE).exists():
            write_whole(run.path / CONFIG_FILE, self.config)
        if not run.state_file.exists():
            run.update()
        self.table.settle()

    def finish(self, **facts: Any) -> None:
        """Notes that the run has finished.

        Args:
            facts: for `run.json`.

        Raises:
            RunError: something that a run leaves could not be written, or was removed after it was.
        """
        self.keep()
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.run.update(status="finished", finished=now, seconds=self.seconds, **facts)
        if self.table.problem:
            raise RunError(self.table.problem)

    @property
    def seconds(self) -> float:
        """How long the run has taken, in all commands that have worked on it."""
        return round(self._before + time.monotonic() - self._since, 1)

    def _about(self) -> dict[str, Any]:
        """What a list of runs says of this one."""
        network = getattr(self._model, "network", self._model)
        params = sum(each.numel() for each in network.parameters())
        names = {"task": self._model, "network": network, "data": self._data}
        kinds = {key: type(each).__name__ for key, each in names.items()}
        devices = f"{self.trainer.world_size} x {self.trainer.strategy.root_device.type}, {self.trainer.precision}"
        return kinds | {"params": params, "surroundings": surroundings(devices)}

    def missing(self) -> str:
        """Which checkpoint somebody has removed since it was written; empty if none."""
        needed = [self.checkpoints.last]
        if self.checkpoints.best_score is not None:
            needed.append(self.checkpoints.folder / "best.ckpt")  # type: ignore[operator]
        return ", ".join(str(path) for path in needed if not path.exists())


def _seconds(value: Any) -> float:
    """A time that a file says, which may say anything."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _arguments(callback: Callback) -> dict[str, Any]:
    """What a callback was given, as far as it keeps it under the same name and it is a plain value."""
    names = [name for name in inspect.signature(type(callback).__init__).parameters if name in vars(callback)]
    plain = int | float | str | bool | None
    return {name: value for name in names if isinstance(value := getattr(callback, name), plain)}


def _listed(value: Any) -> list[dict[str, Any]]:
    """The entries of a list of changes, from a file that may say anything."""
    entries = [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
    return [
        {"step": each["step"], "changes": [str(change) for change in each["changes"]]}
        for each in entries
        if isinstance(each.get("step"), int) and isinstance(each.get("changes"), list)
    ]
