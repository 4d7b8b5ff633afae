"""Batch norms are re-estimated with the weights that are evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from callbacks import PreciseBN, WeightEMA
from lightning_modules import Classification
from tests.library.batches import Batches
from tests.library.callback_batches import Data, batches


class Normed(nn.Module):
    """Two norms, one of which is frozen, another that never runs, and dropout."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 5, 1)
        self.norm = nn.BatchNorm2d(5, momentum=0.3)
        self.unused = nn.BatchNorm2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(20, 3))
        self.unused.running_mean += 7.0
        self.train()

    def train(self, mode: bool = True) -> Normed:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(self.frozen(images))).relu())

    @torch.no_grad()
    def statistics(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Means over the batches of what the norm sees in each."""
        maps = [self.conv(self.frozen.eval()(batch)) for batch in images]
        means = torch.stack([each.mean((0, 2, 3)) for each in maps]).mean(0)
        return means, torch.stack([each.var((0, 2, 3)) for each in maps]).mean(0)


class WithValidation(Data):
    """Of two processes each has every other batch."""

    def train_dataloader(self) -> Batches:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        return Batches(self.batches[rank::ranks])

    def val_dataloader(self) -> Batches:
        return Batches(self.batches[:1])


class Watch(Callback):
    """Looks at the network when it is evaluated and when it is trained."""

    def __init__(self) -> None:
        self.evaluated: list[dict[str, Tensor]] = []
        self.modes: list[list[bool]] = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.evaluated.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.modes.append([module.training for module in pl_module.network.modules()])
        assert pl_module.network.norm.momentum == 0.3


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(
        accelerator="cpu",
        num_sanity_val_steps=1,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **quiet | {"max_epochs": 2} | options,
    )


@pytest.mark.parametrize("count", [3, 100])
def test_statistics_are_those_of_the_evaluated_weights(count: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, data, watch = Normed(), WithValidation(batches(6)), Watch()
    runner = trainer(tmp_path, PreciseBN(count), watch)
    runner.fit(Classification(network, optimizer=torch.optim.SGD), data)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    sanity, *validations = watch.evaluated
    assert len(validations) == 2
    assert torch.equal(sanity["norm.running_mean"], torch.zeros(5))
    images = [batch["image"] for batch in data.batches[:count]]
    for epoch, state in enumerate(validations):
        seen = Normed()
        seen.load_state_dict(state)
        mean, var = seen.statistics(images)
        torch.testing.assert_close(state["norm.running_mean"], mean)
        torch.testing.assert_close(state["norm.running_var"], var)
        # Batches are counted as training counts them; other norms are as they were.
        assert state["norm.num_batches_tracked"] == 6 * (epoch + 1)
        assert torch.equal(state["unused.running_mean"], torch.full((2,), 7.0))
        assert torch.equal(state["frozen.running_var"], torch.ones(3))
    assert len(set(map(tuple, watch.modes))) == 1
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[f"network.{name}"], value) for name, value in validations[-1].items())


def test_a_training_ends_with_them_without_a_validation(tmp_path: Path) -> None:
    network, data = Normed(), WithValidation(batches(6))
    runner = trainer(tmp_path, PreciseBN(), limit_val_batches=0, max_steps=4, max_epochs=-1)
    runner.fit(Classification(network, optimizer=torch.optim.SGD), data)
    mean, var = network.statistics([batch["image"] for batch in data.batches])
    torch.testing.assert_close(network.norm.running_mean, mean)
    torch.testing.assert_close(network.norm.running_var, var)


class Save(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        torch.save(pl_module.network.state_dict(), folder / f"{trainer.global_rank}.pt")


class Still(Classification):
    """Takes steps without gradients: the threads of autograd do not outlive a fork."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.optimizers().step()  # type: ignore[union-attr]


def test_two_processes_have_the_same_of_all_their_batches(tmp_path: Path) -> None:
    data = WithValidation(batches(6))
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", find_unused_parameters=True)
    runner = trainer(tmp_path, PreciseBN(), Save(), strategy=strategy, devices=2)
    runner.fit(Still(Normed(), optimizer=torch.optim.SGD), data)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    seen = Normed()
    seen.load_state_dict(first)
    mean, var = seen.statistics([batch["image"] for batch in data.batches])
    for state in (first, second):
        torch.testing.assert_close(state["norm.running_mean"], mean)
        torch.testing.assert_close(state["norm.running_var"], var)


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PreciseBN: batches must be at least 1, not 0"):
        PreciseBN(0)
    with pytest.raises(ValueError, match="PreciseBN: WeightEMA evaluates averaged weights"):
        trainer(tmp_path, PreciseBN(), WeightEMA()).fit(Classification(Normed()), WithValidation(batches(2)))
