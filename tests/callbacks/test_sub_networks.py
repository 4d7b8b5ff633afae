"""Training of networks that can be searched: what is drawn, and what is evaluated."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from callbacks import StepSeed, SubNetworks
from callbacks.sub_networks import evaluated
from lightning_modules import Classification
from models.mistakes import Mistake
from models.supernet import TransformerSpace, autoformer_supernet
from tests.library.batches import Batches
from tests.library.reports import placed, trainer_with

CLASSES, SAMPLES = 3, 20
SPACE = TransformerSpace([1, 2], [4, 8], [1, 2], [1, 2])


class Data(lightning.LightningDataModule):
    batch_size = 5

    def loader(self) -> Batches:
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(SAMPLES, 3, 8, 8, generator=generator)
        labels, index = torch.arange(SAMPLES) % CLASSES, torch.arange(SAMPLES)
        parts = [slice(i, i + self.batch_size) for i in range(0, SAMPLES, self.batch_size)]
        return Batches([{"image": images[each], "label": labels[each], "index": index[each]} for each in parts])

    train_dataloader = val_dataloader = test_dataloader = loader


def task(space: TransformerSpace = SPACE, **options: Any) -> Classification:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "head_dim": 4, "max_relative_position": 1}
    return Classification(autoformer_supernet(space, num_classes=CLASSES, **sizes, **options))  # type: ignore[arg-type]


class Drawn(Callback):
    """Keeps what each step computes, and the gradients that it leaves."""

    def __init__(self) -> None:
        self.architectures: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.architectures.append(pl_module.network.chosen)


def test_evaluations_look_at_a_fixed_set(tmp_path: Path) -> None:
    report, module, drawn = placed(SubNetworks(drawn=3), tmp_path), task(), Drawn()
    trainer = trainer_with(StepSeed(0), report, drawn, folder=tmp_path, max_epochs=2, num_sanity_val_steps=1)
    data = Data()
    trainer.fit(module, data)
    assert len(set(drawn.architectures)) > 2
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    expected = {}
    for name, architecture in evaluated(module.network, 3, 0).items():  # type: ignore[arg-type]
        module.network.choose(architecture)  # type: ignore[operator]
        found = module.evaluate(data.loader()).metrics
        expected[name] = {key: float(value) for key, value in found.items()}
    for key in ("loss", "top1"):
        assert logged[f"val/{key}"] == expected["largest"][key]
        assert logged[f"val/{key}_smallest"] == expected["smallest"][key]
        mean = sum(expected[f"drawn{i}"][key] for i in range(3)) / 3
        assert logged[f"val/{key}_inherited"] == pytest.approx(mean)
    with (tmp_path / "sub_networks.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["smallest", "drawn0", "drawn1", "drawn2", "largest"]
    assert json.loads(rows["largest"]["architecture"]) == SPACE.described(SPACE.largest())
    assert float(rows["smallest"]["loss"]) == expected["smallest"]["loss"]
    assert (tmp_path / "sub_networks.png").is_file()
    tested = trainer.test(module, data, verbose=False)[0]
    assert tested["test/loss_smallest"] == pytest.approx(logged["val/loss_smallest"])
    assert module.network.chosen == SPACE.largest()


def test_draws_follow_from_seed_epoch_and_step() -> None:
    def draw(rank: int, batch: int, step: int, seed: int = 0, callback: SubNetworks | None = None) -> Any:
        module, callback = task(), callback or SubNetworks()
        trainer: Any = SimpleNamespace(current_epoch=1, global_rank=rank, global_step=step)
        StepSeed(seed).on_train_batch_start(trainer, module, None, batch)
        callback.on_train_batch_start(trainer, module, None, batch)
        return module.network.chosen

    # On any process, and in a training that was resumed there.
    assert draw(0, 5, 5) == draw(1, 5, 5)
    assert len({draw(0, batch, batch) for batch in range(8)}) > 2
    assert len({draw(0, 5, 5, seed) for seed in range(8)}) > 2
    # Micro-batches of a step have one architecture.
    callback = SubNetworks()
    assert len({draw(0, batch, 3, callback=callback) for batch in range(6, 12)}) == 1


def test_a_checkpoint_of_another_space_is_refused(tmp_path: Path) -> None:
    module, report = task(), SubNetworks()
    trainer = trainer_with(report, folder=tmp_path, max_steps=1)
    trainer.fit(module, Data())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    other = task(TransformerSpace([1, 2], [4, 6, 8], [1, 2], [1, 2]))
    with pytest.raises(Mistake, match=r"was trained in the space .* take the space of its config"):
        trainer_with(SubNetworks(), folder=tmp_path, max_steps=2).fit(other, Data(), ckpt_path=tmp_path / "one.ckpt")


def test_networks_without_choices_are_left_alone(tmp_path: Path) -> None:
    module = task()
    module.network = module.network.extracted(SPACE.smallest())  # type: ignore[operator]
    trainer = trainer_with(SubNetworks(), folder=tmp_path, max_steps=1)
    trainer.fit(module, Data())
    assert "val/top1_smallest" not in trainer.logged_metrics
    with pytest.raises(Mistake, match="drawn is at least 1, not 0"):
        SubNetworks(drawn=0)


class Save(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        state: dict[str, Tensor] = pl_module.network.state_dict()
        torch.save(state, Path(trainer.default_root_dir) / f"{trainer.global_rank}.pt")


def train(folder: Path, **options: Any) -> None:
    folder.mkdir()
    trainer = trainer_with(StepSeed(0), SubNetworks(drawn=1), Save(), folder=folder, max_epochs=1, **options)
    trainer.fit(task(), Data())


def train_in_two(folder: Path) -> None:
    """Both processes see the same batches, whose gradients have that mean."""
    train(folder, strategy=DDPStrategy(start_method="fork", process_group_backend="gloo"), devices=2)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Both draw alike and agree on the parameters that a step does not use, of which nobody has told Lightning."""
    # An interpreter of their own: threads of autograd, which other tests may have started, do not outlive a fork.
    code = (
        f"from pathlib import Path; from {__name__} import train_in_two; train_in_two(Path({str(tmp_path / 'two')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=300)
    train(tmp_path / "one")
    alone, *both = (torch.load(tmp_path / place, weights_only=True) for place in ("one/0.pt", "two/0.pt", "two/1.pt"))
    for name, value in alone.items():
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], value)
