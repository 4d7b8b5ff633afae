"""Finding a misspelt metric before the training rather than after its first epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from callbacks.checkpoints import Checkpoints
from callbacks.reports.report import Report
from models.mistakes import Mistake

# In which Lightning lets a callback log what a validation found.
LOGGING_HOOKS = (
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
)


def awaited(trainer: Trainer, task: LightningModule) -> Iterator[tuple[str, str]]:
    """Who waits for which metric of a validation; nothing where a report may log metrics, of which none is known.

    Args:
        trainer: with its callbacks.
        task: that it trains.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(each, Report) and each.may_log(task) for each in callbacks):
        return
    for callback in callbacks:
        name = getattr(callback, "monitor", None)
        if isinstance(name, str) and not name.startswith("train/"):
            yield "checkpoint" if isinstance(callback, Checkpoints) else type(callback).__name__, name


def logged_by(trainer: Trainer) -> set[str]:
    """The metrics that callbacks say they log in a validation, by the whole name: their attribute `logs`.

    Args:
        trainer: with its callbacks.
    """
    return {name for callback in trainer.callbacks for name in getattr(callback, "logs", ())}  # type: ignore[attr-defined]


def logs_unsaid(trainer: Trainer) -> bool:
    """Whether a callback takes part in validations and does not say by `logs` what it logs there, if anything.

    Args:
        trainer: with its callbacks.
    """
    return any(
        getattr(type(callback), hook) is not getattr(Callback, hook)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if not (isinstance(callback, Report | ProgressBar) or hasattr(callback, "logs"))
        for hook in LOGGING_HOOKS
    )


def check_awaited(waiting: Iterable[tuple[str, str]], logged: Iterable[str]) -> None:
    """Refuses to wait for a metric that is not there.

    Args:
        waiting: who waits for which metric.
        logged: the metrics of a validation.

    Raises:
        Mistake: a callback waits for another.
    """
    names = sorted(logged)
    for whose, name in waiting:
        if names and name not in names:
            raise Mistake(
                f"{whose}.monitor is '{name}', but validation logs {', '.join(names)}; a callback of your "
                "own that logs it says so in its attribute `logs`"
            )


class Monitored(Callback):
    """Refuses a callback that monitors a metric which no validation logs: the trial validation shows which there are.

    Of what training logs (`train/...`) nothing can be said.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the metrics of the trial.

        Raises:
            Mistake: a callback waits for another.
        """
        check_awaited(awaited(trainer, pl_module), {*trainer.callback_metrics, *logged_by(trainer)})
