"""Where a training goes on, and what differs from there on, as a person who resumes it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from exp.cli import UsageError
from exp.resuming import Change, Resumption, changes, goes_on, resumption
from exp.run_directory import Run, RunError


def model(**options: Any) -> dict[str, Any]:
    network = {"class_path": "models.Net", "init_args": {"width": 4, **options.pop("network", {})}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0.9, 0.999]}}
    options = {"network": network, "optimizer": optimizer, "lr_multipliers": {"stem": 0.1}, **options}
    return {"class_path": "lightning_modules.Classification", "init_args": options}


OLD: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "a.Stop", "init_args": {"patience": 3}}]},
    "model": model(),
    "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 8}},
}


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({}, []),
        ({"seed_everything": 1}, ["seed_everything: 0 -> 1"]),
        ({"trainer": OLD["trainer"] | {"max_epochs": 9}}, ["trainer.max_epochs: 3 -> 9"]),
        (
            {"trainer": {"max_epochs": 3, "callbacks": [{"class_path": "a.Stop", "init_args": {"patience": 9}}]}},
            ["trainer.callbacks.0.patience: 3 -> 9"],
        ),
        ({"trainer": {"max_epochs": 3, "callbacks": None}}, ["trainer.callbacks: [Stop] -> None"]),
        ({"model": model(optimizer="torch.optim.SGD")}, ["model.optimizer: AdamW -> SGD"]),
        ({"model": model(network={"width": 5})}, ["model.network.width: 4 -> 5"]),
        ({"model": model(lr_multipliers={"stem": 0.1, "head": 2})}, ["model.lr_multipliers.head: None -> 2"]),
        (
            {"model": model(optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0, 1]}})},
            ["model.optimizer.betas: [0.9, 0.999] -> [0, 1]"],
        ),
        ({"data": {"class_path": "datamodules.Coco", "init_args": {"root": "x"}}}, ["data: Digits -> Coco"]),
        # An option that has come since.
        ({"model": model(network={"neck": "fpn"}), "trainer": OLD["trainer"] | {"barebones": False}}, []),
    ],
)
def test_each_value_that_differs_is_told(part: dict[str, Any], told: list[str]) -> None:
    assert [str(change) for change in changes(OLD, OLD | part)] == told


@contextmanager
def refused(message: str, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    with pytest.raises(UsageError):
        yield
    assert message in capsys.readouterr().err


def command(config: dict[str, Any], weights: str | None = None, epochs: int | None = 3, steps: int = -1) -> Any:
    return SimpleNamespace(
        plain=config,
        config=SimpleNamespace(weights=weights),
        trainer=SimpleNamespace(max_epochs=epochs, max_steps=steps),
    )


def trained(epochs: int, begun: int, step: int, config: dict[str, Any] | None = OLD) -> dict[str, Any]:
    """What a checkpoint holds of a training of so many epochs, with one more begun or not."""
    progress = {"epoch_progress": {"current": {"ready": begun, "processed": epochs}}}
    text = {} if config is None else {"exp_config": yaml.safe_dump(config)}
    return {"global_step": step, "optimizer_states": [], "loops": {"fit_loop": progress}, **text}


def run_with(checkpoint: Path, **facts: Any) -> Run:
    return Run(Path("runs/a/0"), checkpoint, facts=facts, fingerprint="now")


LAST = Path("runs/a/0/checkpoints/last.ckpt")


def test_a_training_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with(LAST)
    assert resumption(command(OLD), run, trained(1, 2, 7)) == Resumption(7, (), True)
    assert resumption(command(OLD), run, trained(2, 2, 8)) == Resumption(8, (), False)
    # The run's own end is no mistake; the same of another file is.
    assert resumption(command(OLD), run, trained(3, 3, 12)) == Resumption(12, (), False)
    with refused("has been trained for 3 epochs and 12 steps, and the command asks for no mo", capsys):
        resumption(command(OLD), run_with(Path("other/last.ckpt")), trained(3, 3, 12))
    with refused("has been trained for 4 epochs and 16 steps", capsys):
        resumption(command(OLD), run, trained(4, 4, 16))
    assert run.notes == []


@pytest.mark.parametrize(
    ("epochs", "steps", "enough"),
    [(None, -1, True), (-1, -1, True), (3, 9, True), (3, 8, False), (2, 9, False), (-1, 8, False), (None, 9, True)],
)
def test_epochs_and_steps_that_are_left(
    epochs: int | None, steps: int, enough: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = command(OLD, epochs=epochs, steps=steps)
    run = run_with(Path("other/last.ckpt"))
    if enough:
        assert resumption(asked, run, trained(2, 2, 8)).step == 8
        assert goes_on(asked, run, trained(2, 2, 8))
    else:
        with refused("give more by --trainer.max_epochs", capsys):
            resumption(asked, run, trained(2, 2, 8))
        with pytest.raises(RunError, match="is finished, after 2 epochs, and another config would change nothing"):
            goes_on(asked, run, trained(2, 2, 8))


def test_a_finished_run_goes_on_for_another_config_alone() -> None:
    asked = command(OLD | {"seed_everything": 1}, epochs=2)
    assert not goes_on(asked, run_with(LAST, fingerprint="now"), trained(2, 2, 8))
    assert not goes_on(asked, run_with(LAST, fingerprint="then"), {"state_dict": {}})
    with pytest.raises(RunError, match="after 2 epochs, and seed_everything: 0 -> 1 would change nothing"):
        goes_on(asked, run_with(LAST, fingerprint="then"), trained(2, 2, 8))


@pytest.mark.parametrize(
    "part",
    [{"seed_everything": 1}, {"trainer": OLD["trainer"] | {"accumulate_grad_batches": 2}}],
)
def test_what_orders_samples_stays_within_an_epoch(part: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    old = OLD | {"trainer": OLD["trainer"] | {"accumulate_grad_batches": 1}}
    asked = command(old | part)
    with refused("is in the middle of an epoch, whose samples", capsys):
        resumption(asked, run_with(LAST), trained(1, 2, 7, old))
    assert len(resumption(asked, run_with(LAST), trained(1, 1, 4, old)).changes) == 1


def test_what_a_resume_cannot_take(capsys: pytest.CaptureFixture[str]) -> None:
    weights = OLD | {"weights": "a.ckpt"}
    with refused("give --weights or --resume, not both", capsys):
        resumption(command(weights, "a.ckpt"), run_with(LAST), trained(1, 1, 4, OLD | {"weights": None}))
    assert resumption(command(weights, "a.ckpt"), run_with(LAST), trained(1, 1, 4, weights)).changes == ()
    with refused("optimiser (model.optimizer) is AdamW, the command's SGD", capsys):
        resumption(command(OLD | {"model": model(optimizer="torch.optim.SGD")}), run_with(LAST), trained(1, 1, 4))


@pytest.mark.parametrize("gone", ["global_step", "optimizer_states", "loops"])
def test_what_holds_no_training(gone: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = trained(1, 1, 4)
    del content[gone]
    with refused("it holds no state of a training; start a new training from its weights", capsys):
        resumption(command(OLD), run_with(LAST), content)


@pytest.mark.parametrize("current", [{"ready": 1}, {"processed": 1}, None, 3])
def test_what_holds_no_progress(current: Any) -> None:
    content = trained(1, 1, 4) | {"loops": {"fit_loop": {"epoch_progress": {"current": current}}}}
    assert not goes_on(command(OLD), run_with(LAST), content)


def test_a_checkpoint_that_does_not_say_its_config() -> None:
    run = run_with(LAST)
    assert resumption(command(OLD), run, trained(1, 1, 4, None)) == Resumption(4, (), False)
    assert run.notes == [f"{LAST} does not say with which config it was made: what differs is not known"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"class_path": "torch.optim.SGD", "init_args": {"lr": 1}}, "SGD"),
        ("models.classifiers.timm_classifier", "timm_classifier"),
        ("configs/a 1.yaml", "configs/a 1.yaml"),
        (0.25, "0.25"),
        ([{"class_path": "a.B"}, "c.D", 1.5], "[B, D, 1.5]"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 80 + "..."),
        ("two\n  lines", "two lines"),
    ],
)
def test_values_are_told_in_a_line(value: Any, told: str) -> None:
    assert str(Change("key", None, value)) == f"key: None -> {told}"
