"""The recipes of CondConv, Dynamic Convolution and DRConv, where their papers say what they trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.optim import RMSpropTF
from torch import nn

from callbacks import Annealing, WeightEMA
from tests.library.images import image_size
from tests.library.recipes import ROOT, TASKS, built


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("size", ["b0_4e", "b0_8e", "b1_8e"])
def test_condconv_efficientnet(size: str) -> None:
    cli = built(Path(f"configs/classification/condconv_efficientnet_{size}_imagenet1k.yaml"))
    optimizer = cli.model.main.optimizer([nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, RMSpropTF)
    wanted = {"lr": 0.256, "alpha": 0.9, "momentum": 0.9, "eps": 1e-3, "weight_decay": 1e-5}
    assert {name: optimizer.defaults[name] for name in wanted} == wanted
    images = cli.datamodule.batch_size * cli.trainer.accumulate_grad_batches
    assert images == cli.model.reference_batch == 4096
    assert (cli.trainer.max_epochs, cli.model.label_smoothing, cli.model.mix) == (350, 0.1, None)
    # Ten steps an epoch: a straight line, and from the end of the warm-up on a drop of 3 % every 24 steps.
    table = cli.model.main.schedule.table(0.256, 10, 3500)
    np.testing.assert_allclose(table[:50], 0.256 * np.arange(50) / 50)
    np.testing.assert_allclose(table[50:], 0.256 * 0.97 ** (np.arange(50, 3500) // 24))
    network = cli.model.network
    (average,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, WeightEMA)]
    assert (average.decay, average.warm_up) == (0.9999, True)
    # Two parameters of each batch norm do not decay, everything else does.
    decay = {name: g["weight_decay"] for g in cli.model.main.groups(0.256, 1e-5) for name in g["param_names"]}
    assert decay.keys() == {name for name, _ in network.named_parameters()}
    of_norms = {
        f"{name}.{own}"
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for own in ("weight", "bias")
    }
    assert {name for name, value in decay.items() if value == 0} == of_norms
    assert set(decay.values()) == {0, 1e-5}
    assert decay["classifier.bias"] == decay["blocks.4.0.routing_fn.bias"] == 1e-5
    assert network.drop_rate == 0.25
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    # The rate rises from block to block; the last block has no shortcut to drop.
    rates = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert 0.15 < rates[-1] < 0.2
    augment = cli.plain["data"]["init_args"]["train_transforms"][2]
    assert augment["class_path"] == "datamodules.transforms.AutoAugment"
    assert (augment["init_args"]["policy"], augment["init_args"]["fill"]) == ("v0", [128, 128, 128])
    extremes = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    look = cli.datamodule.on_after_batch_transfer({"image": extremes}, 0)["image"]
    torch.testing.assert_close(look, torch.tensor([-1.0, 1.0]).expand(1, 3, 1, 2))
    assert image_size(cli.datamodule) == ((3, 240, 240) if size == "b1_8e" else (3, 224, 224))


@pytest.mark.parametrize("path", [path for path in TASKS if path.stem.startswith("dynamic_conv")], ids=str)
def test_temperature_falls_as_published(path: Path) -> None:
    cli = built(path)
    (annealing,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, Annealing)]
    # A straight line from 30 to 1 over ten epochs, as in the paper.
    for epoch, temperature in ((0.0, 30.0), (0.5, 28.55), (5.0, 15.5), (10.0, 1.0), (99.0, 1.0)):
        assert annealing.value(epoch, cli.trainer.max_epochs) == pytest.approx(temperature)
    # Refuses a pattern that fits no layer.
    annealing.setup(cli.trainer, cli.model, "fit")
