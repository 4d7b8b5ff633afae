"""The callbacks of every run, one property each."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from callbacks import NonFiniteGuard, NonFiniteLoss, StepSeed, WeightEMA
from callbacks.non_finite import _samples
from drawing.figures import confusion_matrix, contact_sheet, learning_curve, save
from lightning_modules import Classification
from tests.library.batches import Batches
from tests.library.callback_batches import Data, batches


class Linear(nn.Module):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


def fit(module: Classification, data: Data, callbacks: list[Callback], folder: Path, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=folder,
        **{"max_epochs": 1, **options},
    )
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize("step", [0, 3, 5])
def test_non_finite_loss_names_step_term_and_samples(step: int, tmp_path: Path) -> None:
    data = Data(batches(6))
    data.batches[step]["image"][1] = torch.inf
    with pytest.raises(NonFiniteLoss) as error:
        fit(Classification(Linear()), data, [NonFiniteGuard()], tmp_path)
    message = str(error.value)
    assert f"'ce' is not finite at step {step} (epoch 0)" in message
    assert ", ".join(f"train/{i}.png" for i in range(4 * step, 4 * step + 4)) in message


def test_samples_of_several_streams_are_named_by_split() -> None:
    names = SimpleNamespace(sample_name=lambda split, index: f"{split} #{index}")
    batch = {"train": {"index": torch.tensor([3, 1])}, "unlabelled": {"index": torch.tensor([7])}}
    guard, trainer = NonFiniteGuard(), SimpleNamespace(current_epoch=0, datamodule=names)
    guard._pending = (4, {"loss": torch.tensor(float("nan"))}, _samples(batch))
    with pytest.raises(NonFiniteLoss, match="train #3, train #1, unlabelled #7"):
        guard.settle(trainer)  # type: ignore[arg-type]


def test_finite_losses_pass(tmp_path: Path) -> None:
    fit(Classification(Linear()), Data(batches(6)), [NonFiniteGuard()], tmp_path)


@pytest.mark.parametrize(
    ("decay", "warm_up", "shares"),
    [
        (0.75, False, [0.75] * 5),
        # (1 + n) / (10 + n) for the first, second ... step, at most the decay.
        (0.35, True, [2 / 11, 3 / 12, 4 / 13, 0.35, 0.35]),
    ],
)
def test_ema_starts_from_the_initial_weights_and_follows_every_step(
    decay: float, warm_up: bool, shares: list[float], tmp_path: Path
) -> None:
    seen = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen.append(copy.deepcopy(pl_module.state_dict()))

    module = Classification(Linear())
    average = copy.deepcopy(module.state_dict())
    fit(module, Data(batches(5)), [Recorder(), WeightEMA(decay, warm_up)], tmp_path)
    for weights, share in zip(seen, shares, strict=True):
        average = {name: share * average[name] + (1 - share) * weights[name] for name in average}
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-6, atol=1e-7)


def test_ema_keeps_9999_parts_of_10000_by_default(tmp_path: Path) -> None:
    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen.append(pl_module.network.layer.bias.detach().clone())

    seen: list[Tensor] = []
    network = Linear()
    before = network.layer.bias.detach().clone()
    module = Classification(network, optimizer=lambda groups: torch.optim.SGD(groups, lr=1000.0))
    fit(module, Data(batches(1)), [Recorder(), WeightEMA()], tmp_path)
    torch.testing.assert_close(network.layer.bias - before, 1e-4 * (seen[0] - before), rtol=1e-3, atol=1e-7)
    assert (seen[0] - before).abs().max() > 10


def test_test_after_fit_uses_the_average(tmp_path: Path) -> None:
    class Keeper(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "kept.ckpt")

    class WithTest(Data):
        def test_dataloader(self) -> Batches:
            return Batches(self.batches)

    module, data = Classification(Linear()), WithTest(batches(5))
    trainer = fit(module, data, [WeightEMA(0.9), Keeper()], tmp_path)
    trainer.test(module, data, ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    kept = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    name = "network.layer.weight"
    assert torch.equal(module.state_dict()[name], kept["state_dict"][name])
    assert not torch.equal(module.state_dict()[name], kept["current_model_state"][name])


def test_step_seed_is_a_function_of_seed_epoch_step() -> None:
    class State:
        current_epoch, global_rank = 2, 0

    def draw(seed: int, step: int, rank: int = 0) -> tuple[float, ...]:
        state = State()
        state.global_rank = rank
        StepSeed(seed).on_train_batch_start(state, Classification(Linear()), None, step)  # type: ignore[arg-type]
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(0, 5) == draw(0, 5)
    different = {draw(0, 5), draw(0, 6), draw(1, 5), draw(0, 5, rank=1)}
    assert len(different) == 4
    assert all(len({d[i] for d in different}) == 4 for i in range(3))


def test_penalties_are_added_and_logged_by_name(tmp_path: Path) -> None:
    module = Classification(Linear(), optimizer=torch.optim.SGD)
    before = module.network.layer.weight.detach().clone()
    module.penalties["budget"] = lambda: 5.0 * module.network.layer.weight.sum()
    trainer = fit(module, Data(batches(1)), [], tmp_path, log_every_n_steps=1)
    logged = trainer.logged_metrics
    expected = logged["train/loss_ce"] + logged["train/loss_budget"]
    torch.testing.assert_close(logged["train/loss"], expected)
    torch.testing.assert_close(logged["train/loss_budget"], 5 * before.sum())


def test_drawings_are_readable_files(tmp_path: Path) -> None:
    curve = learning_curve({"loss": {"train": ([1, 2], [3.0, 0.1]), "val": ([], [])}, "top1": {"train": ([], [])}})
    assert len(curve.axes) == 1
    matrix = confusion_matrix(np.array([[3, 1], [0, 0]]), ["cat", "dog"])
    sheet = contact_sheet([np.zeros((4, 6, 3), np.uint8)] * 7, [str(i) for i in range(7)])
    for name, figure in (("curve", curve), ("matrix", matrix), ("sheet", sheet)):
        assert save(figure, tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
