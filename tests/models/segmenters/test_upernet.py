from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from lightning_modules.parameter_groups import LayerDecay, parameter_groups
from models.compute import count, parameter_count
from models.official import load
from models.segmenters.upernet import UperNet
from tests.library.upernet_networks import CONVNEXT, MEASURED, TINY


def settled(network: nn.Module) -> Any:
    """In evaluation mode, with norms that are not the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.2)
            module.weight.data.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("size", MEASURED)
def test_size_and_cost_are_those_of_the_published_network(size: str) -> None:
    params, without_auxiliary, backbone, image, macs = MEASURED[size]
    with torch.device("meta"):
        network = UperNet(backbone=f"convnext_{size}_dense")
    assert parameter_count(network) == params
    assert params - parameter_count(network.auxiliary) == without_auxiliary
    assert parameter_count(network.backbone) == backbone
    report = count(network, (3, *image))
    assert report.macs == report.conv_linear_macs
    assert round(report.macs / 1e9, 1) == macs


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("convnext_tiny_dense", CONVNEXT),
        # The first of a ResNet's five maps is left out.
        ("resnet18", {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)}),
        ("hrnet_w18_small", {}),
        # Maps [B, h, w, channels], of fixed sizes.
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 1, 1), "img_size": (64, 96)}),
    ],
)
def test_any_backbone_gives_two_exits_in_training_and_one_in_evaluation(backbone: str, options: dict) -> None:
    network = UperNet(**TINY | {"backbone": backbone, "options": options})
    images = torch.randn(2, 3, 64, 96)
    auxiliary, logits = network.train()(images)
    assert auxiliary.shape == logits.shape == (2, 5, 64, 96)
    (auxiliary.square().mean() + logits.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.eval()(images).shape == (2, 5, 64, 96)


def test_maps_that_come_with_channels_last_are_read_so() -> None:
    options = {"embed_dim": 12, "depths": (1, 1, 1, 1), "img_size": (64, 96)}
    network = UperNet(**TINY | {"backbone": "swin_tiny_patch4_window7_224", "options": options})
    shapes = [tuple(x.shape[1:]) for x in network.features(torch.randn(1, 3, 64, 96))]
    assert shapes == [(12, 16, 24), (24, 8, 12), (48, 4, 6), (96, 2, 3)]


def test_sides_need_not_be_multiples_of_the_stride() -> None:
    torch.manual_seed(0)
    network = settled(UperNet(**TINY))
    assert network(torch.randn(1, 3, 77, 101)).shape == (1, 5, 77, 101)


def test_every_level_and_every_pool_counts() -> None:
    torch.manual_seed(0)
    head = settled(UperNet(**TINY)).head
    maps = [torch.randn(1, chans, 24 // 2**i, 32 // 2**i) for i, chans in enumerate(CONVNEXT["dims"])]
    reference = head(maps)
    for i in range(4):
        assert not torch.allclose(head([x * 2 if i == j else x for j, x in enumerate(maps)]), reference, atol=1e-4)
    for pool in head.pools:
        weight = pool[1][0].weight.data
        kept = weight.clone()
        weight.zero_()
        assert not torch.allclose(head(maps), reference, atol=1e-4)
        weight.copy_(kept)


def test_fresh_classifiers_are_nearly_silent() -> None:
    torch.manual_seed(0)
    network = UperNet(num_classes=150, options=CONVNEXT)
    for head in (network.head, network.auxiliary):
        assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not head.classifier.bias.any()
        assert head.dropout.p == 0.1
    wide = network.head.fusion[0].weight
    assert wide.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.05)


def test_layers_learn_by_stage() -> None:
    network = UperNet(**TINY)
    groups = parameter_groups(network, 1.0, 0.05, LayerDecay(0.9, "convnext_stage_wise", 6, "backbone"))
    scales = {name: group["lr_scale"] for group in groups for name in group["param_names"]}
    for i in range(4):
        assert scales[f"backbone.stages.{i}.blocks.0.conv_dw.weight"] == pytest.approx(0.9 ** (6 - i))
        assert scales[f"backbone.norm{i}.weight"] == 1
    downsampling = [scale for name, scale in scales.items() if "downsample" in name or "stem" in name]
    assert downsampling == pytest.approx([0.9**7] * 16)
    assert {scale for name, scale in scales.items() if not name.startswith("backbone.")} == {1.0}


def test_stochastic_depth_reaches_the_backbone() -> None:
    rates = [m.drop_prob for m in UperNet(**TINY, drop_path_rate=0.4).modules() if isinstance(m, DropPath)]
    assert rates[-1] == max(rates) == pytest.approx(0.4)
    assert not any(isinstance(m, DropPath) for m in UperNet(**TINY).modules())


def test_weights_of_other_classes_leave_both_classifiers_as_they_are() -> None:
    source, target = UperNet(**TINY), UperNet(**TINY | {"num_classes": 7})
    kept = target.auxiliary.classifier.weight.detach().clone()
    dropped = load(target, source.state_dict())
    assert sorted(dropped) == [
        f"{head}.classifier.{kind}" for head in ("auxiliary", "head") for kind in ("bias", "weight")
    ]
    assert torch.equal(target.auxiliary.classifier.weight, kept)
    assert torch.equal(target.head.fusion[0].weight, source.head.fusion[0].weight)


def test_reduced_precision_gives_finite_logits_and_gradients() -> None:
    torch.manual_seed(0)
    network = UperNet(**TINY)
    with torch.autocast("cpu", torch.bfloat16):
        exits = network(torch.randn(2, 3, 64, 64))
    sum(logits.float().square().mean() for logits in exits).backward()
    assert all(logits.isfinite().all() for logits in exits)
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"pool_sizes": ()}, r"pool_sizes=\(\)"),
        ({"pool_sizes": (0, 1)}, r"pool_sizes=\(0, 1\)"),
        ({"dropout": 1.0}, "dropout is a probability below 1, not 1.0"),
        ({"backbone": "convnext_tny_dense"}, "no backbone is called 'convnext_tny_dense'"),
        (
            {"options": {"depths": (1, 1, 1), "dims": (8, 8, 8)}},
            "convnext_tiny_dense has fewer than the 4",
        ),
        ({"backbone": "convnext_tiny_dense.fb_in99k"}, r"timm cannot make .*: Invalid pretrained tag \(fb_in99k\)"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UperNet(**TINY | options)
