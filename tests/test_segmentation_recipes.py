"""The recipes for Cityscapes are what was published: arXiv 2104.00749, arXiv 2003.10401, and their training codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from callbacks import ComputeBudget, PreciseBN
from datamodules import Cityscapes
from exp.cli import Cli
from models.compute import parameter_count
from tests.library.recipes import ROOT, built

IMAGES = 2975
# Parameters, width of the redesigned heads and threshold.
ADPC = {
    "w18": (3_997_635, 64, 0.998),
    "w18_ee": (4_033_556, None, None),
    "w18_ee_rh": (3_997_492, 64, None),
    "w48": (66_062_998, 128, 0.998),
    "w48_ee": (66_074_796, None, None),
    "w48_ee_rh": (66_062_700, 128, None),
}
# Parameters, and weight and target of the budget.
ROUTING = {
    "raw": (17_784_968, None),
    "a": (17_784_968, (0.8, 0.1)),
    "b": (17_784_968, (0.5, 0.1)),
    "c": (17_784_968, (0.5, 0.2)),
    "raw_33": (38_871_666, None),
}
FIXED = ("fcn32s", "deeplabv3", "unet", "hrnet", "auto_deeplab")


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def recipe(name: str) -> Cli:
    cli = built(Path(f"configs/segmentation/{name}_cityscapes.yaml"))
    assert cli.experiment == f"{name}_cityscapes"
    assert isinstance(cli.datamodule, Cityscapes)
    assert cli.plain["trainer"]["sync_batchnorm"] is True
    assert cli.datamodule.batch_size == cli.model.reference_batch
    return cli


def optimiser(cli: Cli) -> dict[str, float]:
    return cli.model.main.optimizer([nn.Parameter(torch.zeros(1))]).defaults


def test_every_recipe_is_checked() -> None:
    names = {path.stem.removesuffix("_cityscapes") for path in ROOT.glob("configs/segmentation/*_cityscapes.yaml")}
    assert names == {f"adpc_{name}" for name in ADPC} | {f"dynamic_routing_{name}" for name in (*ROUTING, *FIXED)}


@pytest.mark.parametrize("name", ADPC)
def test_adpc(name: str) -> None:
    params, pooled_dim, threshold = ADPC[name]
    cli = recipe(f"adpc_{name}")
    options = cli.plain["model"]["init_args"]["network"]["init_args"]
    assert parameter_count(cli.model.network) == params
    assert (options["pooled_dim"], options["threshold"]) == (pooled_dim, threshold)
    assert (options["bn_momentum"], options["init_std"]) == (0.01, 0.001)
    defaults = optimiser(cli)
    assert (defaults["lr"], defaults["momentum"], defaults["weight_decay"]) == (0.01, 0.9, 5e-4)
    # Everything decays, the falloff of masked convolutions too.
    assert [group["weight_decay"] for group in cli.model.main.groups(0.01, 5e-4)] == [5e-4]
    assert (cli.trainer.max_epochs, cli.datamodule.batch_size) == (484, 12)
    steps = cli.trainer.max_epochs * (IMAGES // 12)
    table = cli.model.main.schedule.table(0.01, IMAGES // 12, steps)
    np.testing.assert_allclose(table, 0.01 * (1 - np.arange(steps) / steps) ** 0.9)
    assert (cli.model.exit_weights, cli.model.normalisation, cli.model.ohem) == ("sum", "weights", None)
    assert cli.datamodule.class_weights == list(Cityscapes.published_weights or ())
    # The data's own default is HRNet's augmentation.
    assert cli.plain["data"]["init_args"]["train_transforms"] is None


@pytest.mark.parametrize("name", [*ROUTING, *FIXED])
def test_dynamic_routing(name: str) -> None:
    params, budget = ROUTING.get(name, (None, None))
    cli = recipe(f"dynamic_routing_{name}")
    options = cli.plain["model"]["init_args"]["network"]["init_args"]
    if params is not None:
        assert parameter_count(cli.model.network) == params
        assert options["small_gate"] is (budget is not None)
    assert options["route"] == (name if name in FIXED else "dynamic")
    budgets = [callback for callback in cli.trainer.callbacks if isinstance(callback, ComputeBudget)]
    assert [(each.weight, each.target) for each in budgets] == ([budget] if budget else [])
    per_epoch = IMAGES // 8
    for each in budgets:
        assert (each.scope, each.form) == ("dynamic", "squared")
        assert each.begin_epochs * per_epoch == pytest.approx(0.4 * 190_000, rel=1e-3)
        assert each.warmup_epochs * per_epoch == pytest.approx(0.02 * 190_000, rel=1e-3)
    pretrained = name == "raw_33"
    lr = 0.02 if pretrained else 0.05
    defaults = optimiser(cli)
    assert (defaults["lr"], defaults["momentum"], defaults["weight_decay"]) == (lr, 0.9, 1e-4)
    groups = cli.model.main.groups(lr, 1e-4)
    assert {group["lr_scale"] for group in groups} == ({1.0, 2.5} if pretrained else {1.0})
    # Norms do not decay; biases of convolutions do: the last one of each gate and the classifier's.
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    convolutions = {n for n, m in cli.model.network.named_modules() if isinstance(m, nn.Conv2d)}
    for parameter, value in decay.items():
        assert value == (1e-4 if parameter.rpartition(".")[0] in convolutions else 0), parameter
    biases = [name for name, value in decay.items() if value and name.endswith(".bias")]
    gates = len({name.split(".gate.")[0] for name in decay if ".gate." in name})
    assert len(biases) == gates + 1
    bytes_ = torch.tensor([[10, 20, 30]], dtype=torch.uint8)[..., None, None]
    look = cli.datamodule.on_after_batch_transfer({"image": bytes_}, 0)["image"].flatten()
    torch.testing.assert_close(look, torch.tensor([30 - 103.53, 20 - 116.28, 10 - 123.675]))
    # Published for the networks without a budget.
    precise = [callback.batches for callback in cli.trainer.callbacks if isinstance(callback, PreciseBN)]
    assert precise == ([] if budget else [200])
    assert (cli.trainer.max_steps, cli.datamodule.batch_size, cli.trainer.gradient_clip_val) == (190_000, 8, 5.0)
    steps = np.arange(190_000)
    warm = np.minimum(1, 0.001 + 0.999 * steps / 1000)
    table = cli.model.main.schedule.table(lr, per_epoch, 190_000)
    np.testing.assert_allclose(table, lr * warm * (1 - steps / 190_000) ** 0.9, rtol=1e-9)
    assert cli.datamodule.class_weights is None
    # Of the sizes that are drawn some are smaller than the crop: black around the middle, and void.
    pipeline = cli.datamodule.pipeline(cli.datamodule.train_transforms).compose
    padded = 0
    for seed in range(12):
        pipeline.set_random_seed(seed)
        sample = pipeline(image=np.full((1024, 2048, 3), 200, np.uint8), mask=np.zeros((1024, 2048), np.uint8))
        assert sample["mask"].shape == (768, 768)
        void = sample["mask"] == 255
        assert (sample["image"][void] == 0).all()
        assert (sample["image"][~void] == 200).all()
        rows = void.all(1)
        assert np.array_equal(rows, rows[::-1])
        padded += void.any()
    assert padded
