"""Official checkpoints of pruned networks: what they hold says how wide the network is, and which channels it reads."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import models.backbones  # noqa: F401  registers our networks with timm
from exp import convert
from exp.weight_files import read
from models import official
from models.classifiers import VGG, CIFARDenseNet, CIFARResNet, ImageNetVGG, PreActResNet
from models.layers.channel_selection import ChannelSelection
from models.mistakes import Mistake
from models.pruning.norm_channels import kept_widths, norm_plan
from models.pruning.plan import Plan
from models.pruning.removal import masked, remove

_VGG: list[Any] = [4, 5, "M", 6, "M", 7]
# The network, and how it is built with the options that the conversion tells.
CASES: dict[str, tuple[nn.Module, Callable[..., nn.Module]]] = {
    "pruned_vgg": (VGG(_VGG, 4, 8), lambda **o: VGG(num_classes=4, **o)),
    "pruned_vgg/bias": (VGG(_VGG, 4, bias=True), lambda **o: VGG(num_classes=4, **o)),
    "pruned_vgg/imagenet": (ImageNetVGG([4, "M", 5, "M"], 4, (6, 7)), lambda **o: ImageNetVGG(num_classes=4, **o)),
    "pruned_vgg/average": (ImageNetVGG([4, "M", 5], 4, ()), lambda **o: ImageNetVGG(num_classes=4, **o)),
    "pruned_resnet": (CIFARResNet(14, num_classes=4), lambda **o: CIFARResNet(14, num_classes=4, **o)),
    "slimmed": (PreActResNet(20, num_classes=4), lambda **o: PreActResNet(20, num_classes=4, **o)),
    "slimmed/dense": (CIFARDenseNet(13, 4, num_classes=4), lambda **o: CIFARDenseNet(13, 4, num_classes=4, **o)),
}


def pruned_copy(network: nn.Module, plan: Plan) -> nn.Module:
    smaller = copy.deepcopy(network)
    remove(smaller, plan)
    return smaller


def lively(network: nn.Module) -> nn.Module:
    """With norms that change what they get, and every second channel of those that can leave gone but one."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    if not hasattr(network, "norm_channels"):
        return network.eval()
    kept: dict[str, Tensor] = {}
    for place in network.norm_channels():  # type: ignore[operator]
        norm = network.get_submodule(place.norm)
        kept[place.norm] = torch.arange(len(norm.get_parameter("weight"))) % 2 == 0
        kept[place.norm][1] = True
        with torch.no_grad():
            norm.get_parameter("weight").mul_(kept[place.norm])
            norm.get_parameter("bias").mul_(kept[place.norm])
    plan = Plan.of(norm_plan(network.eval(), kept).as_dict())
    smaller = pruned_copy(network, plan)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(smaller(x), network(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(smaller(x), masked(network, plan)(x), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in network.parameters())
    return smaller


@pytest.mark.parametrize("name", CASES)
def test_an_official_file_of_a_pruned_network(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large, build = CASES[name]
    network = lively(large)
    layout = official.layout_of(name.partition("/")[0])
    theirs = layout.to_official(network.state_dict())
    # The first versions of torch counted no batches.
    state = {f"module.{key}": value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    torch.save({"cfg": [1, "M"], "state_dict": state}, tmp_path / "pruned.pth.tar")
    assert convert.main([str(tmp_path / "pruned.pth.tar"), str(tmp_path / "ours.safetensors")]) == 0
    told = capsys.readouterr().out.strip()
    assert "\n" not in told
    options = json.loads(told.partition("network options ")[2])

    found = build(**options)
    official.load(found, read(tmp_path / "ours.safetensors"))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.eval()(x), network(x))


def test_widths_of_a_network_are_what_its_norms_keep() -> None:
    network = PreActResNet(11)
    kept = {
        place.norm: torch.arange(len(network.get_parameter(f"{place.norm}.weight"))) < i + 1
        for i, place in enumerate(network.norm_channels())
    }
    widths = kept_widths(network, kept)
    assert widths == list(range(1, 11))
    assert (
        pruned_copy(network, norm_plan(network, kept)).state_dict().keys()
        == PreActResNet(11, widths).state_dict().keys()
    )


def test_a_norm_keeps_a_channel() -> None:
    network = PreActResNet(11)
    with pytest.raises(Mistake, match=r"norm stages\.0\.0\.norm2 would lose all 16 channels"):
        norm_plan(network, {"stages.0.0.norm2": torch.zeros(16, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("name", "inner"), [("resnet34_l1_a", [(3,), (2,), (4,), (5,)]), ("resnet50_thinet_30", [(3, 2)] * 4)]
)
def test_imagenet_files_have_timms_names_already(name: str, inner: Any) -> None:
    network = timm.create_model(name, layers=(1, 1, 1, 1), channels=(4, 8, 8, 8), inner=inner, num_classes=3)
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = official.unwrap({"epoch": 3, "arch": name, "state_dict": state, "best_prec1": 70.0})
    assert official.load(network, given) == []
    assert not official.foreign(given)


def test_a_selection_follows_the_weights() -> None:
    options: Any = {"layers": (1, 1, 1, 1), "channels": (4, 4, 4, 4), "inner": [(3, 2, 2)] * 4, "num_classes": 3}
    network, fresh = (timm.create_model("resnet50_regression_2x", **options).eval() for _ in range(2))
    for module in network.modules():
        if isinstance(module, ChannelSelection):
            module.select(torch.arange(len(module.indexes)) >= len(module.indexes) - 3)
    layout = official.layout_of("pruned_regression")
    official.load(fresh, layout.to_ours(layout.to_official(network.state_dict())))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(fresh(x), network(x))
