"""DRNet's recipes for ImageNet are what was published: arXiv 2106.02898, section 4."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from callbacks import ComputeBudget
from exp.cli import Cli
from lightning_modules.parameter_groups import parameter_groups
from tests.library.images import image_size

ROOT = Path(__file__).parents[3]
RECIPES = ["drnet_resnet50_imagenet1k", "drnet_resnet101_imagenet1k", "drnet_mobilenetv2_imagenet1k"]


@pytest.mark.parametrize("host", RECIPES)
@pytest.mark.parametrize("joint", [False, True])
def test_recipe_is_the_published_one(host: str, joint: bool) -> None:
    names = dict.fromkeys([RECIPES[0], host, *(["drnet_joint_imagenet1k"] if joint else [])])
    with torch.device("meta"):
        cli = Cli([f"--config={ROOT}/configs/classification/{name}.yaml" for name in names], "fit")
    network, steps = cli.model.network, 1_281_167 // 256
    assert (network.phase, network.route, network.inference) == ("joint" if joint else "pretrain", "split", "argmax")
    assert network.candidates == [(224, 224), (168, 168), (112, 112)]
    assert network.predictor_size == ((64, 64) if "mobilenet" in host else (128, 128))
    assert cli.datamodule.batch_size == cli.model.reference_batch == 256
    assert image_size(cli.datamodule) == (3, 224, 224)
    assert cli.trainer.max_epochs == (100 if joint else 70)
    defaults = cli.model.main.optimizer([nn.Parameter(torch.zeros(1))]).defaults
    assert (defaults["lr"], defaults["weight_decay"], cli.model.exit_weights) == (0.1, 1e-4, "sum")
    assert defaults["momentum"] == 0.9
    table = cli.model.main.schedule.table(0.1, steps, steps * cli.trainer.max_epochs)
    drops = [30, 60, 90] if joint else [20, 40, 60]
    assert [round(i / steps) for i in range(1, len(table)) if table[i] < table[i - 1]] == drops
    assert int(table.argmax()) == 3 * steps - 1
    groups = parameter_groups(network, 0.1, 1e-4, cli.model.main.layer_decay)
    rates = {n.split(".")[0]: g["lr"] for g in groups for n in g["param_names"]}
    assert rates == pytest.approx({"classifier": 0.1, "predictor": 0.01} if joint else {"classifier": 0.1})
    budgets = [callback for callback in cli.trainer.callbacks if isinstance(callback, ComputeBudget)]
    assert len(budgets) == joint
    if joint and "resnet50" in host:
        assert budgets[0].target * network.dense / 1e9 == pytest.approx(2.5, abs=1e-3)
        assert (budgets[0].weight, budgets[0].form) == (0.2, "hinge")
