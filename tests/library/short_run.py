"""A run of one epoch, which has nine steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.library.runner import SMALL, Ended, run

RUN = Path("runs/run/0")
SHORT = ["--trainer.max_epochs=1", "--model.schedule.warmup_epochs=0.5"]


def fit(folder: Path, *argv: str, sabotage: Callable[[], None] | None = None) -> Ended:
    """Trains it in a folder; what is typed comes last."""
    return run("fit", [*SMALL, "--experiment=run", *SHORT, *argv], folder, sabotage)
