"""What a training leaves for those that start from its pruned network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from callbacks import PrunedNetwork
from models.classifiers import VGG, CIFARResNet, pruned, scaled_branches
from models.compute import count
from models.mistakes import Mistake
from models.pixels import state_pretrained
from models.pruning.plan import Plan
from models.pruning.removal import masked

WIDTHS: list[Any] = [8, "M", 12, 16]


def written(report: PrunedNetwork, network: nn.Module, folder: Path) -> dict[str, Any]:
    """What the report writes of a network, by the name of its file."""
    torch.manual_seed(0)
    report.task = SimpleNamespace(
        network=network,
        inputs=lambda batch: (batch["image"],),
        data=SimpleNamespace(
            example=lambda samples: {"image": torch.randn(samples, 3, 32, 32)},
            train_dataloader=lambda: iter([{"image": torch.randn(16, 3, 32, 32)} for _ in range(4)]),
            on_after_batch_transfer=lambda batch, loader: batch,
        ),
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report.write(folder)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return {file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}


@pytest.fixture
def trained() -> VGG:
    torch.manual_seed(1)
    network = VGG(WIDTHS, 4).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.5)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    return network


@pytest.mark.parametrize("criterion", ["thinet", "lasso"])
def test_layers_that_read_what_is_gone_are_rebuilt(criterion: Any, trained: VGG, tmp_path: Path) -> None:
    found = written(PrunedNetwork(0.5, criterion, name=criterion), trained, tmp_path)
    small = VGG(found[f"{criterion}_widths.json"], 4).eval()
    small.load_state_dict(load_file(tmp_path / f"{criterion}.safetensors"))
    x = torch.randn(8, 3, 32, 32)
    lost = (masked(trained, Plan.of(found[f"{criterion}.json"]))(x) - trained(x)).square().mean()
    assert (small(x) - trained(x)).square().mean() < lost


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_the_same_share_of_each_layer(criterion: Any, trained: VGG, tmp_path: Path) -> None:
    found = written(PrunedNetwork(0.5, criterion, name=criterion), trained, tmp_path)
    assert found[f"{criterion}_widths.json"] == [4, "M", 6, 8]
    small = VGG(found[f"{criterion}_widths.json"], 4).eval()
    small.load_state_dict(load_file(tmp_path / f"{criterion}.safetensors"))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(small(x), masked(trained, Plan.of(found[f"{criterion}.json"]))(x), rtol=1e-5, atol=1e-5)
    alone = pruned(VGG(WIDTHS, 4), found[f"{criterion}.json"])
    assert {name: value.shape for name, value in alone.state_dict().items()} == {
        name: value.shape for name, value in small.state_dict().items()
    }


def test_slimming_takes_the_smallest_scales_of_all_layers(trained: VGG, tmp_path: Path) -> None:
    found = written(PrunedNetwork(0.5, "slimming", name="slim"), trained, tmp_path)
    gammas = torch.cat([trained.get_parameter(f"{place.norm}.weight") for place in trained.norm_channels()])
    widths, uniform = found["slim_widths.json"], found["slim_uniform.json"]
    # The one at the threshold goes, too.
    assert sum(width for width in widths if width != "M") == len(gammas) - len(gammas) // 2 - 1
    assert widths != uniform
    macs = [count(VGG(each, 4), (3, 32, 32)).macs for each in (WIDTHS, widths, uniform)]
    assert 0.6 * macs[1] < macs[2] <= macs[1] < macs[0]


def test_a_network_of_timms_has_no_widths(tmp_path: Path) -> None:
    network = timm.create_model("narrow_resnet", layers=(1, 1, 1, 1), width=4, num_classes=3)
    state_pretrained(network, True)
    assert set(written(PrunedNetwork(0.5), network, tmp_path)) == {"pruned.json"}
    with safe_open(tmp_path / "pruned.safetensors", "pt") as file:
        assert json.loads(file.metadata()["pixels"])["mean"] == [0.485, 0.456, 0.406]
    with pytest.raises(Mistake, match="does not say whose channels its norms scale"):
        written(PrunedNetwork(0.5, "slimming"), network, tmp_path)


def test_residual_networks_lose_what_is_inside_of_blocks(tmp_path: Path) -> None:
    found = written(PrunedNetwork(0.5), CIFARResNet(8, stage_widths=(4, 6, 8)), tmp_path)
    assert found["pruned_widths.json"] == [2, 3, 4]


def test_a_budget_of_multiply_adds(trained: VGG, tmp_path: Path) -> None:
    found = written(PrunedNetwork(budget=0.4), trained, tmp_path)
    macs = [count(VGG(each, 4), (3, 32, 32)).macs for each in (WIDTHS, found["pruned_widths.json"])]
    assert 0.3 * macs[0] < macs[1] <= 0.4 * macs[0]
    with pytest.raises(Mistake, match="a budget takes the place of a share"):
        PrunedNetwork(0.5, budget=0.4)


def test_branches_at_zero_go(tmp_path: Path) -> None:
    network = scaled_branches(CIFARResNet(8, stage_widths=(4, 6, 8)), ["stages.*.norm2"])
    torch.nn.init.zeros_(network.get_parameter("stages.1.0.norm2.branch_scale"))
    found = written(PrunedNetwork(criterion="branches"), network, tmp_path)
    assert found["pruned.json"]["branches"] == ["stages.1.0.norm2"]
    alone = pruned(CIFARResNet(8, stage_widths=(4, 6, 8)), found["pruned.json"])
    alone.load_state_dict(load_file(tmp_path / "pruned.safetensors"))


def test_a_share_is_less_than_all() -> None:
    with pytest.raises(Mistake, match="l1 needs a share of the channels"):
        PrunedNetwork()
    with pytest.raises(Mistake, match="between 0 and 1, not 1"):
        PrunedNetwork(1.0)
