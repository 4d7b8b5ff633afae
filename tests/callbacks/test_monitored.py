"""A metric that nobody logs is missed; one that a callback says it logs is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping

from callbacks import Monitored
from models.mistakes import Mistake


class Logging(Callback):
    logs = ("val/sharpness",)


def trial(*callbacks: Callback) -> None:
    """What a trial validation that logs a loss says of the callbacks."""
    trainer: Any = SimpleNamespace(callbacks=list(callbacks), callback_metrics={"val/loss": 0.5})
    Monitored().on_sanity_check_end(trainer, SimpleNamespace())  # type: ignore[arg-type]


def test_what_a_callback_says_it_logs_may_be_monitored() -> None:
    # It logs it at the end of some epochs only, so that a trial does not show it.
    trial(Logging(), EarlyStopping("val/sharpness"))


def test_what_nobody_logs_may_not() -> None:
    with pytest.raises(
        Mistake,
        match=r"EarlyStopping\.monitor is 'val/sharpnes', but validation logs val/loss, val/sharpness; .* `logs`",
    ):
        trial(Logging(), EarlyStopping("val/sharpnes"))
    with pytest.raises(Mistake, match=r"but validation logs val/loss; "):
        trial(EarlyStopping("val/sharpness"))
