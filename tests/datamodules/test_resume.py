"""The stream of samples does not depend on workers or interruptions, as the real Trainer drives the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from datamodules import DataError, Digits
from tests.library.recorder import Recorder, SaveEverywhere

EPOCHS, BATCH, ACCUMULATE = 3, 250, 2
STEPS_PER_EPOCH = 2  # of 1258 images: 2 x 2 batches of 250, surplus dropped


def fit(
    folder: Path, resume: str | None = None, workers: int = 0, batch: int = BATCH, save: bool = False, **limits: Any
) -> Recorder:
    module, data = Recorder(), Digits(batch_size=batch, num_workers=workers)
    data.seed = 5
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=ACCUMULATE,
        callbacks=[SaveEverywhere(folder)] if save else [],
        **limits,
    )
    trainer.fit(module, data, ckpt_path=str(folder / resume) if resume else None, weights_only=True)
    return module


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, fit(folder, save=True, max_epochs=EPOCHS).stream


def test_uninterrupted_stream_covers_each_epoch_once(whole: tuple[Path, list[Any]]) -> None:
    stream = whole[1]
    assert [epoch for epoch, _, _ in stream] == [0] * 4 + [1] * 4 + [2] * 4
    for epoch in range(EPOCHS):
        seen = [index for at, indices, _ in stream if at == epoch for index in indices]
        assert len(seen) == len(set(seen)) == 1000
    assert stream[0][1] != stream[4][1]


def test_overfitting_sees_the_same_batches_in_every_epoch(whole: tuple[Path, list[Any]], tmp_path: Path) -> None:
    stream = fit(tmp_path, max_epochs=2, overfit_batches=2).stream
    assert [epoch for epoch, _, _ in stream] == [0, 0, 1, 1]
    assert [indices for _, indices, _ in stream] == 2 * [indices for _, indices, _ in whole[1][:2]]


CHECKPOINTS = [(f"batch{n}.ckpt", n) for n in (1, 2, 4, 5, 8, 11)]
CHECKPOINTS += [("epoch0.ckpt", 4), ("epoch1.ckpt", 8), ("val0.ckpt", 4), ("val1.ckpt", 8)]


@pytest.mark.parametrize(("name", "done"), CHECKPOINTS)
@pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
def test_resumed_stream_is_the_rest(whole: tuple[Path, list[Any]], name: str, done: int, limit: str) -> None:
    folder, stream = whole
    limits = {"max_epochs": EPOCHS} if limit == "max_epochs" else {"max_steps": EPOCHS * STEPS_PER_EPOCH}
    assert fit(folder, name, **limits).stream == stream[done:]


@pytest.mark.parametrize(("again", "done"), [("batch5.ckpt", 5), ("batch8.ckpt", 8), ("epoch1.ckpt", 8)])
@pytest.mark.parametrize("limits", [{"max_epochs": EPOCHS}, {"max_steps": EPOCHS * STEPS_PER_EPOCH}], ids=str)
def test_a_resumed_run_can_be_resumed(
    whole: tuple[Path, list[Any]], tmp_path: Path, again: str, done: int, limits: dict[str, int]
) -> None:
    (tmp_path / "epoch0.ckpt").write_bytes((whole[0] / "epoch0.ckpt").read_bytes())
    fit(tmp_path, "epoch0.ckpt", save=True, **limits)
    assert fit(tmp_path, again, **limits).stream == whole[1][done:]


@pytest.mark.parametrize(("resume", "done"), [(None, 0), ("batch2.ckpt", 2), ("batch5.ckpt", 5), ("epoch0.ckpt", 4)])
def test_workers_change_nothing(whole: tuple[Path, list[Any]], resume: str | None, done: int) -> None:
    folder, stream = whole
    assert fit(folder, resume, workers=2, max_epochs=EPOCHS).stream == stream[done:]


def test_checkpoint_of_workers_counts_steps_not_prefetched_batches(tmp_path: Path, whole: Any) -> None:
    fit(tmp_path, workers=2, save=True, max_steps=1)
    state = torch.load(tmp_path / "batch1.ckpt", weights_only=True)["loops"]["fit_loop"]["state_dict"]
    assert state["combined_loader"] == [{"epoch": 0, "samples": BATCH}]
    assert fit(tmp_path, "batch1.ckpt", max_epochs=EPOCHS).stream == whole[1][1:]


def test_a_smaller_batch_resumes_the_same_order(whole: tuple[Path, list[Any]]) -> None:
    folder, stream = whole
    indices = [index for _, part, _ in fit(folder, "batch2.ckpt", batch=125, max_epochs=1).stream for index in part]
    assert indices[:500] == [index for _, part, _ in stream[2:4] for index in part]


def test_a_batch_that_does_not_divide_is_refused(whole: tuple[Path, list[Any]]) -> None:
    with pytest.raises(DataError, match="no multiple of batch_size=200"):
        fit(whole[0], "batch1.ckpt", batch=200, max_epochs=EPOCHS)


def test_fit_leaves_the_default_generator_alone() -> None:
    data = Digits(batch_size=BATCH)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)
