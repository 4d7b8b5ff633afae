"""DVT's recipes for ImageNet are what was published: arXiv 2105.15075 and 2012.12877, and their training codes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from callbacks import WeightEMA
from tests.library.recipes import ROOT, built

# Learning rate, batch, weight decay, warm-up and epochs after the schedule's 300, and whether mixed images are erased.
RECIPES = {
    "t2t_12": (2e-3, 1024, 0.03, 20, 10, True),
    "t2t_14": (5e-4, 512, 0.05, 20, 10, True),
    "deit_small": (1e-3, 1024, 0.05, 5, 0, False),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_the_published_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lr, batch, weight_decay, warmup, cooldown, erase_mixed = RECIPES[name]
    cli = built(Path(f"configs/classification/dvt_{name}_imagenet1k.yaml"))
    assert cli.trainer.max_epochs == 300 + cooldown
    assert cli.datamodule.batch_size == cli.model.reference_batch == batch
    defaults = cli.model.main.optimizer([nn.Parameter(torch.zeros(1))]).defaults
    assert (defaults["lr"], defaults["weight_decay"]) == (lr, weight_decay)
    assert (cli.model.random_erasing, cli.model.erase_mixed, cli.model.label_smoothing) == (0.25, erase_mixed, 0.1)
    assert cli.model.exit_weights == "sum"
    (average,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, WeightEMA)]
    assert (average.decay, average.warm_up) == (0.99996, False)

    table = cli.model.main.schedule.table(lr, 7, 7 * cli.trainer.max_epochs)
    for epoch in range(cli.trainer.max_epochs):
        if epoch < warmup:
            expected = 1e-6 + (lr - 1e-6) * epoch / warmup
        elif epoch < 300:
            expected = 1e-5 + (lr - 1e-5) * (1 + math.cos(math.pi * epoch / 300)) / 2
        else:
            expected = 1e-5
        assert table[7 * epoch : 7 * epoch + 7] == pytest.approx([expected] * 7, rel=1e-9), epoch


@pytest.mark.parametrize("name", RECIPES)
def test_class_tokens_and_learned_positions_decay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cli = built(Path(f"configs/classification/dvt_{name}_imagenet1k.yaml"))
    groups = cli.model.main.groups(1.0, 0.05)
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    trained = dict(cli.model.network.named_parameters())
    assert decay.keys() == {name for name, parameter in trained.items() if parameter.requires_grad}
    for parameter, value in decay.items():
        assert (value == 0) == (trained[parameter].ndim == 1 or parameter.endswith(".bias")), parameter
    learned = [name for name in decay if name.endswith(("cls_token", "pos_embed"))]
    assert len(learned) == (6 if name == "deit_small" else 3)
