"""A run that is killed at any moment and started again ends with the bits of one that was never interrupted."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import Checkpoints, StepSeed
from exp import checkpoint_io
from exp.checkpoint_io import AtomicCheckpointIO, damage
from lightning_modules import Classification
from tests.library.run_contents import after, assert_same, contents, table
from tests.library.runner import SMALL, Ended, die, run

FULL = ["--model.mix.mixup=0.8", "--trainer.callbacks+=WeightEMA", "--trainer.callbacks.decay=0.9"]
ACCUMULATE = ["--trainer.accumulate_grad_batches=2"]


def fit(folder: Path, argv: list[str], sabotage: Callable[[], None] | None = None) -> Ended:
    return run("fit", [*SMALL, "--experiment=run", *argv], folder, sabotage)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """Folders of uninterrupted runs, by their options."""
    done: dict[tuple[str, ...], Path] = {}

    def get(options: tuple[str, ...]) -> Path:
        if options not in done:
            done[options] = tmp_path_factory.mktemp("uninterrupted")
            ended = fit(done[options], list(options))
            assert ended.code == 0, ended.output
        return done[options]

    return get


def half_written(checkpoint: Any, file: Any) -> None:
    file.write(b"PK\x03\x04 half a checkpoint")
    file.flush()
    die()


MOMENTS = {
    # An epoch has 9 batches of 128, or 8 where pairs of them are accumulated.
    "before any checkpoint": after(StepSeed, "on_train_batch_start", 2),
    "mid-epoch": after(StepSeed, "on_train_batch_start", 6),
    "mid-accumulation": after(StepSeed, "on_train_batch_start", 7),
    "first step of an epoch": after(StepSeed, "on_train_batch_start", 10),
    "second epoch": after(StepSeed, "on_train_batch_start", 15),
    "near the end": after(StepSeed, "on_train_batch_start", 24),
    "during validation": after(Classification, "validation_step", 5),
    "before a checkpoint": after(AtomicCheckpointIO, "save_checkpoint", 5),
    "at an epoch's end": after(Checkpoints, "on_train_epoch_end", 2),
}


@pytest.mark.parametrize("options", [tuple(ACCUMULATE), tuple(FULL)], ids=["accumulate", "ema-mixup"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_ends_with_the_same_bits(
    moment: str, options: tuple[str, ...], tmp_path: Path, reference: Callable[[tuple[str, ...]], Path]
) -> None:
    killed = fit(tmp_path, list(options), MOMENTS[moment])
    assert killed.code == -signal.SIGKILL, killed.output
    ended = fit(tmp_path, list(options))
    assert ended.code == 0, ended.output
    assert [p.name for p in (tmp_path / "runs/run").iterdir()] == ["0"]
    for name in ("last", "best"):
        assert_same(contents(reference(options), name), contents(tmp_path, name), name)
    assert table(reference(options)) == table(tmp_path)


def test_loader_workers_do_not_change_the_bits(tmp_path: Path, reference: Callable[[tuple[str, ...]], Path]) -> None:
    workers = [*FULL, "--data.num_workers=2"]
    killed = fit(tmp_path, workers, MOMENTS["second epoch"])
    assert killed.code == -signal.SIGKILL, killed.output
    assert fit(tmp_path, workers).code == 0
    assert_same(contents(reference(tuple(FULL))), contents(tmp_path))


def test_training_by_steps_resumes(tmp_path: Path, reference: Callable[[tuple[str, ...]], Path]) -> None:
    steps = ["--trainer.max_epochs=-1", "--trainer.max_steps=23"]
    killed = fit(tmp_path, steps, MOMENTS["second epoch"])
    assert killed.code == -signal.SIGKILL, killed.output
    assert fit(tmp_path, steps).code == 0
    uninterrupted, resumed = contents(reference(tuple(steps))), contents(tmp_path)
    assert uninterrupted["global_step"] == 23
    assert_same(uninterrupted["state_dict"], resumed["state_dict"])
    assert_same(uninterrupted["optimizer_states"], resumed["optimizer_states"])


def test_killed_while_writing_a_checkpoint(tmp_path: Path, reference: Callable[[tuple[str, ...]], Path]) -> None:
    def sabotage() -> None:
        whole, count = torch.save, [0]

        def save(checkpoint: Any, file: Any) -> None:
            count[0] += 1
            half_written(checkpoint, file) if count[0] == 6 else whole(checkpoint, file)

        checkpoint_io.torch.save = save

    killed = fit(tmp_path, FULL, sabotage)
    assert killed.code == -signal.SIGKILL, killed.output
    folder = tmp_path / "runs/run/0/checkpoints"
    assert any(".partial" in p.name for p in folder.iterdir())
    assert damage(folder / "last.ckpt") is None
    assert fit(tmp_path, FULL).code == 0
    assert not any(".partial" in p.name for p in folder.iterdir())
    assert_same(contents(reference(tuple(FULL))), contents(tmp_path))


@pytest.mark.parametrize("harm", ["torn", "flipped"])
def test_damaged_checkpoint_falls_back(harm: str, tmp_path: Path, reference: Callable[[tuple[str, ...]], Path]) -> None:
    assert fit(tmp_path, FULL, MOMENTS["second epoch"]).code == -signal.SIGKILL
    last = tmp_path / "runs/run/0/checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    if harm == "torn":
        content = content[: len(content) // 2]
    else:
        with zipfile.ZipFile(last) as archive:
            tensor = max(archive.infolist(), key=lambda entry: entry.file_size)
        content[tensor.header_offset + 2 * tensor.file_size // 3] ^= 1
    last.write_bytes(content)
    ended = fit(tmp_path, FULL)
    assert ended.code == 0, ended.output
    assert "trying the checkpoint before it" in ended.output
    assert "previous.ckpt" in ended.output
    assert_same(contents(reference(tuple(FULL))), contents(tmp_path))


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, reference: Callable[[tuple[str, ...]], Path]) -> None:
    def sabotage() -> None:
        whole, count = torch.save, [0]

        def save(checkpoint: Any, file: Any) -> None:
            count[0] += 1
            if count[0] == 6:
                with open("/dev/full", "wb") as full:  # the kernel's own "no space left"
                    whole(checkpoint, full)
            whole(checkpoint, file)

        checkpoint_io.torch.save = save

    full = fit(tmp_path, FULL, sabotage)
    assert full.code == 1
    assert "no space left on the device" in full.output
    assert "Traceback" not in full.output
    folder = tmp_path / "runs/run/0/checkpoints"
    assert damage(folder / "last.ckpt") is None
    assert not any(".partial" in p.name for p in folder.iterdir())
    assert fit(tmp_path, FULL).code == 0
    assert_same(contents(reference(tuple(FULL))), contents(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_between_steps(
    number: signal.Signals, tmp_path: Path, reference: Callable[[tuple[str, ...]], Path]
) -> None:
    options = [*FULL, "--checkpoint.every_n_steps=1000"]
    stopped = fit(tmp_path, options, after(StepSeed, "on_train_batch_start", 6, lambda: os.kill(os.getpid(), number)))
    assert stopped.code == 75, stopped.output
    assert "Traceback" not in stopped.output
    assert contents(tmp_path)["global_step"] == 6
    ended = fit(tmp_path, options)
    assert ended.code == 0, ended.output
    assert_same(contents(reference(tuple(options))), contents(tmp_path))


def test_signal_during_validation_stops_at_once(tmp_path: Path, reference: Callable[[tuple[str, ...]], Path]) -> None:
    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    stopped = fit(tmp_path, FULL, after(Classification, "validation_step", 5, terminate))
    assert stopped.code == 75, stopped.output
    assert fit(tmp_path, FULL).code == 0
    assert_same(contents(reference(tuple(FULL))), contents(tmp_path))


def test_where_a_run_goes_on(tmp_path: Path) -> None:
    """auto goes on with the unfinished run of the same config; never, another config or a finished run start anew."""

    def versions() -> list[str]:
        return sorted(p.name for p in (tmp_path / "runs/run").iterdir())

    die_early = MOMENTS["second epoch"]
    assert fit(tmp_path, [], die_early).code == -signal.SIGKILL
    assert fit(tmp_path, ["--resume=never"], die_early).code == -signal.SIGKILL
    assert versions() == ["0", "1"]
    other = fit(tmp_path, ["--label_smoothing=0.1"])
    assert other.code == 2
    assert "label_smoothing" in other.output
    other = fit(tmp_path, ["--model.label_smoothing=0.1"])
    assert "is unfinished, but of another config" in other.output
    assert versions() == ["0", "1", "2"]
    ended = fit(tmp_path, [])
    assert "resuming from runs/run/1/checkpoints/last.ckpt" in ended.output
    ended = fit(tmp_path, ["--resume=runs/run/0"])
    assert "resuming from runs/run/0/checkpoints/last.ckpt" in ended.output
    assert versions() == ["0", "1", "2"]
    again = fit(tmp_path, [], die_early)
    assert again.code == -signal.SIGKILL
    assert versions() == ["0", "1", "2", "3"]
    start = "runs/run/3/checkpoints/last.ckpt"
    ended = fit(tmp_path, [f"--resume={start}"])
    assert f"starts from {start}" in ended.output
    assert versions() == ["0", "1", "2", "3", "4"]
    missing = fit(tmp_path, ["--resume=nowhere"])
    assert missing.code == 2
    assert "nowhere" in missing.output
    named = fit(tmp_path, ["--version=mine"])
    assert named.code == 0
    named = fit(tmp_path, ["--version=mine"])
    assert named.code == 0
    assert "is finished" in named.output
    assert fit(tmp_path, ["--version=mine", "--resume=never"]).code == 2
