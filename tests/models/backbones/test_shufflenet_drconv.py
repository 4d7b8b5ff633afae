from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import nn
from torchvision.models import shufflenet_v2_x0_5

from models.backbones.shufflenet_drconv import CHANNELS, GuidedShuffleBlock
from models.compute import ComputeReport, count, executed
from models.decisions import noted
from models.layers.dr_conv import DRConv2d
from models.official import load, systems
from models.official.drconv import LAYOUT
from tests.library.drconv_costs import COSTS

SMALL: dict[str, Any] = {"channels": (6, 8, 16, 24, 20), "depths": (2, 1, 2), "num_regions": 4, "num_classes": 3}


def small(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("shufflenet_v2_x0_5_drconv", **SMALL | changes)


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", COSTS)
def test_cost_is_the_published_one(size: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(f"shufflenet_v2_{size}_drconv")
    report = count(network)
    dynamic = work(report, ".conv", "DRConv2d")
    generated, routed = work(report, "generator"), work(report, "generator.routing")
    parts = {
        "guided": dynamic - generated,
        "kernels": generated - routed,
        "routing": routed,
        "guide": work(report, "guide"),
        "classifier": work(report, "head.fc"),
    }
    costs = [report.macs - sum(parts.values()), *parts.values(), report.macs]
    params, *expected = COSTS[size]
    assert report.params == params
    assert [cost / 1e6 for cost in costs] == pytest.approx(expected, abs=0.0051)
    assert report.macs == report.conv_linear_macs


def work(report: ComputeReport, name: str, kind: str | None = None) -> float:
    return sum(line.macs for line in report.modules if line.name.endswith(name) and kind in (None, line.type))


def test_widest_network() -> None:
    with torch.device("meta"):
        network = timm.create_model("shufflenet_v2_x2_0_drconv", num_classes=10)
    assert network.num_features == 2048
    assert network.get_classifier().weight.shape == (10, 2048)


def test_static_host_is_shufflenet() -> None:
    with torch.device("meta"):
        network, plain = timm.create_model("shufflenet_v2_x0_5_drconv", num_regions=0), shufflenet_v2_x0_5()
    ours, theirs = count(network), count(plain)
    # The released network has biases in its first and last convolution.
    assert ours.params == theirs.params + 24 + 1024
    assert ours.macs == theirs.macs
    assert not [module for module in network.modules() if isinstance(module, DRConv2d)]


def test_executed_work_is_the_counted_one() -> None:
    network = small()
    assert executed(network, images(3)).macs == count(network, (3, 64, 96)).macs
    assert executed(network.train(), images(3)).macs == count(network, (3, 64, 96)).macs


def test_evaluation_equals_the_published_form() -> None:
    network = small()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images())
        skipping = network.eval()(images())
    masking = network(images())
    assert masking.requires_grad
    torch.testing.assert_close(skipping, masking.detach(), rtol=1e-5, atol=1e-5)
    assert noted(network.stages[0][0].expand.conv)[""].values.unique().numel() > 1


def test_branches() -> None:
    block = GuidedShuffleBlock(8, 8, 1, 4, 2).eval()
    x = torch.randn(2, 8, 6, 6)
    changed = x.clone()
    changed[:, 1::2] += torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x)[:, :4], x[:, ::2])
    assert torch.equal(block(changed)[:, :4], x[:, ::2])
    assert not torch.allclose(block(changed)[:, 4:], block(x)[:, 4:])


def test_one_guide_for_both_convolutions() -> None:
    block = GuidedShuffleBlock(6, 16, 2, 4, 2)
    x = torch.randn(2, 6, 9, 9)
    assert block(x).shape == (2, 16, 5, 5)
    regions = block.guide(x).argmax(1)
    assert torch.equal(noted(block.expand.conv)[""].values, regions)
    nearest = F.interpolate(regions[:, None].float(), (5, 5))[:, 0].long()
    assert torch.equal(noted(block.project.conv)[""].values, nearest)


@pytest.mark.parametrize("num_regions", [0, 4])
def test_every_parameter_learns(num_regions: int) -> None:
    network = small(num_regions=num_regions)
    network(images()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_features_are_what_the_info_says() -> None:
    network = small(features_only=True).eval()
    channels, reductions = network.feature_info.channels(), network.feature_info.reduction()
    assert (channels, reductions) == ([6, 8, 16, 24], [2, 8, 16, 32])
    shapes = [tuple(feature.shape) for feature in network(images())]
    assert shapes == [(2, c, 64 // r, 96 // r) for c, r in zip(channels, reductions, strict=True)]
    chosen = small(features_only=True, out_indices=(1, 3)).eval()
    torch.testing.assert_close(chosen(images())[1], network(images())[3])


def test_timm_interface() -> None:
    network = small().eval()
    features = network.forward_features(images())
    assert features.shape == (2, 20, 2, 3)
    torch.testing.assert_close(network.forward_head(features), network(images()))
    assert network.forward_head(features, pre_logits=True).shape == (2, 20)
    network.reset_classifier(7)
    assert network(images()).shape == (2, 7)
    groups = group_parameters(network, network.group_matcher())
    assert sum(len(names) for names in groups.values()) == len(list(network.parameters()))
    # The stem, each block (the last one with the convolution after it), the classifier.
    assert len(groups) == 1 + 5 + 1
    assert len(timm.list_models("shufflenet_v2_*_drconv")) == len(CHANNELS)


def test_checkpointing_changes_nothing() -> None:
    network = small()
    network(images()).square().sum().backward()
    plain = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    again = small()
    again.set_grad_checkpointing()
    again(images()).square().sum().backward()
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (6, 8, 16, 20)}, "depths"),
        ({"depths": (2, 0, 2)}, "depths"),
        ({"channels": (6, 9, 16, 24, 20)}, "even number"),
        ({"channels": (6, 8, 8, 24, 20)}, "even number"),
    ],
)
def test_bad_sizes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_official_checkpoint_there_and_back() -> None:
    network = small()
    ours = network.state_dict()
    theirs = LAYOUT.to_official(ours)
    assert "drconv" in systems()
    assert LAYOUT.matches(theirs)
    assert LAYOUT.matches_ours(ours)
    assert not LAYOUT.matches(ours)
    assert not LAYOUT.matches_ours(theirs)
    assert {
        "conv_first.conv.bias",
        "stage1_block1.conva_left.bn.num_batches_tracked",
        "stage1_block2.masknet.weight",
        "stage3_block2.convc_right.conv.routing_fc.bias",
        "conv_last.bn.running_var",
        "classifier.weight",
    } <= set(theirs)
    back = LAYOUT.to_ours(theirs)
    assert list(back) == list(ours)
    other = small()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert load(other, back) == []
    assert torch.equal(other.eval()(images()), network.eval()(images()))
