"""Finding a misspelt metric before the training rather than after its first epoch."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.checkpoints import Checkpoints
from callbacks.reports.report import Report
from models.mistakes import Mistake


class Monitored(Callback):
    """Refuses a callback that monitors a metric which no validation logs.

    The trial validation before training shows which metrics there are. It has no reports, so that where one logs
    metrics nothing can be said; nor of what training logs (`train/...`).
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the metrics of the trial.

        Raises:
            Mistake: a callback waits for another.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        logged = sorted(trainer.callback_metrics)
        if not logged or any(isinstance(each, Report) and each.may_log(pl_module) for each in callbacks):
            return
        for callback in callbacks:
            name = getattr(callback, "monitor", None)
            if isinstance(name, str) and not name.startswith("train/") and name not in logged:
                whose = "checkpoint" if isinstance(callback, Checkpoints) else type(callback).__name__
                raise Mistake(f"{whose}.monitor is '{name}', but validation logs {', '.join(logged)}")
