"""What exp touches of Lightning that Lightning does not promise."""

from __future__ import annotations

import ast
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from lightning_modules.internals import (
    Clock,
    is_compiled,
    leave_signals_alone,
    longest_wait,
    step_counts,
    trainer_of,
    wait_at_most,
)
from tests.library.reports import trainer_with
from tests.library.toy_task import Line, Numbers, seeded

ROOT = Path(__file__).parents[2]


def test_every_private_name_is_still_there(tmp_path: Path) -> None:
    """Whatever Lightning renames fails here first."""
    seen: list[dict[str, Any]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            clock = Clock(trainer)
            seen.append(
                {
                    "step": clock.step,
                    "epoch": clock.steps_per_epoch,
                    "total": clock.total_steps,
                    "accumulates": clock.accumulates,
                    "logs": clock.logs(clock.step),
                    "resumes": clock.resumes_here,
                    "validates": clock.validates_next,
                }
            )

    module = seeded()
    assert trainer_of(module) is None
    # Five batches and two a step: three steps, the last of which has one batch.
    trainer = trainer_with(Look(), folder=tmp_path, max_epochs=2, accumulate_grad_batches=2, log_every_n_steps=2)
    trainer.fit(module, Numbers(20))
    assert trainer_of(module) is trainer
    assert [each["step"] for each in seen] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6]
    assert {(each["epoch"], each["total"]) for each in seen} == {(3, 6)}
    assert [each["accumulates"] for each in seen] == [True, False, True, False, False] * 2
    assert [i for i, each in enumerate(seen) if each["logs"]] == [3, 6, 9]
    # The last batch of an epoch is followed by its validation.
    assert [each["resumes"] for each in seen] == [False, True, False, True, False] * 2
    assert [each["validates"] for each in seen] == [False, False, False, False, True] * 2
    connector = trainer._signal_connector
    assert callable(connector.register_signal_handlers)
    leave_signals_alone(trainer)
    before = signal.getsignal(signal.SIGTERM)
    connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before
    assert longest_wait(trainer) is None
    trainer = Trainer(strategy=DDPStrategy(), accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    wait_at_most(trainer, timedelta(minutes=3))
    assert longest_wait(trainer) == timedelta(minutes=3)
    network = Line()
    assert not is_compiled(network)
    network.compile()
    assert is_compiled(network)


def test_steps_are_counted_before_the_data_is_set_up(tmp_path: Path) -> None:
    counted: list[tuple[int, int | None]] = []

    class Count(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            counted.append(step_counts(trainer))

    trainer_with(Count(), folder=tmp_path, max_epochs=2).fit(seeded(), Numbers(12))
    trainer_with(Count(), folder=tmp_path, max_epochs=-1, max_steps=4).fit(seeded(), Numbers(12))
    assert counted == [(3, 6), (3, 4)]


@pytest.mark.parametrize("package", ["lightning_modules", "callbacks", "datamodules", "exp"])
def test_private_names_of_lightning_stand_in_one_module(package: str) -> None:
    known = {name for name in _lightning_names() if name.startswith("_") and not name.startswith("__")}
    found = []
    for path in (ROOT / package).rglob("*.py"):
        if path.name == "internals.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            of_self = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            if isinstance(node, ast.Attribute) and node.attr in known and not of_self:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}")
    assert not found


def _lightning_names() -> set[str]:
    """Attributes of the objects of a training."""
    trainer = lightning.pytorch.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    loop = trainer.fit_loop
    things = (trainer, loop, loop.epoch_loop, trainer.strategy, trainer._signal_connector, trainer._data_connector)
    return {name for thing in things for name in dir(thing)} | set(dir(lightning.pytorch.LightningModule))
