"""CONTAINER's recipes for ImageNet are what was published: the training code of allenai/container, which is DeiT's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from callbacks import WeightEMA
from tests.library.recipes import ROOT, built


@pytest.mark.parametrize("name", ["container_v1_light", "container"])
def test_recipe_is_the_published_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cli = built(Path(f"configs/classification/{name}_imagenet1k.yaml"))
    arguments = cli.plain["model"]["init_args"]
    assert arguments["network"]["init_args"]["name"] == name
    assert cli.trainer.max_epochs == 300
    assert cli.datamodule.batch_size == cli.model.reference_batch == 1024
    defaults = cli.model.main.optimizer([nn.Parameter(torch.zeros(1))]).defaults
    assert (defaults["lr"], defaults["weight_decay"]) == (1e-3, 0.05)
    assert (cli.model.random_erasing, cli.model.erase_mixed, cli.model.label_smoothing) == (0.25, False, 0.1)
    assert arguments["mix"] == {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "batch"}
    # The raw weights are evaluated.
    assert not [callback for callback in cli.trainer.callbacks if isinstance(callback, WeightEMA)]
    rates = [module.drop_prob for module in cli.model.network.modules() if isinstance(module, DropPath)]
    # The first block's is 0.
    assert rates == pytest.approx([0.1 * block / 17 for block in range(1, 18)])

    table = cli.model.main.schedule.table(1e-3, 2, 2 * 300)
    for epoch in range(300):
        warm = 1e-6 + (1e-3 - 1e-6) * epoch / 5
        cosine = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 300)) / 2
        assert table[2 * epoch : 2 * epoch + 2] == pytest.approx([warm if epoch < 5 else cosine] * 2, rel=1e-9), epoch

    decay = {each: group["weight_decay"] for group in cli.model.main.groups(1.0, 0.05) for each in group["param_names"]}
    trained = dict(cli.model.network.named_parameters())
    assert decay.keys() == trained.keys()
    assert all((value == 0) == (trained[each].ndim == 1) for each, value in decay.items())
