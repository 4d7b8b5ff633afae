"""Hosts of Dynamic Grained Encoders: the measured sizes, any size of image, and weights of plain hosts."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

import models  # noqa: F401 (registers the backbones)
from models.compute import count, expected, parameter_count, recorded, static_macs
from models.decisions import noted
from models.detectors.retinanet import RetinaNet
from models.mistakes import Mistake
from models.official import load
from models.segmenters.upernet import UperNet

# Parameters of the plain host and with DGE, with the integers of `splits`; 1e9 multiply-adds of the plain host as they
# are, and those of the official formula: static, all regions 2x2, all regions 1x1. Measured with the official models.
SHEET = {
    "deit tiny": (5_728_936, 5_735_920, 1.7066, 1.6801, 0.5963, 0.3253),
    "deit small": (22_073_704, 22_087_600, 6.1416, 6.0887, 2.2224, 1.2558),
    "deit base": (86_613_736, 86_641_456, 23.1974, 23.0915, 8.5640, 4.9322),
    "pvt tiny": (13_348_328, 13_354_520, 2.5530, 2.3720, 0.7646, 0.3628),
    "pvt small": (24_604_904, 24_617_480, 5.0377, 4.8104, 1.5626, 0.7507),
    "pvt medium": (44_327_144, 44_351_312, 8.7812, 8.5003, 2.8408, 1.4260),
    "pvt large": (61_488_360, 61_522_782, 12.9393, 12.5916, 4.1880, 2.0871),
}
# DPVT's parameters, and multiply-adds of linear layers and convolutions.
DPVT = {
    "tiny": (10_077_032, 2.2270),
    "small": (17_615_796, 4.3816),
    "medium": (30_177_156, None),
    "large": (40_797_888, None),
}
SMALL_DEIT: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
SMALL_PVT: dict[str, Any] = {
    "img_size": 64,
    "embed_dims": (8, 8, 12, 16),
    "num_heads": (1, 1, 2, 2),
    "depths": (1, 1, 2, 1),
}


def plain_and_grained(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    host, size = name.split()
    if host == "pvt":
        return timm.create_model(f"pvt_{size}_256"), timm.create_model(f"pvt_dge_s124_{size}_256", **options)
    plain = timm.create_model(f"deit_{size}_patch16_224", img_size=256)
    return plain, timm.create_model(f"deit_dge_s124_{size}_patch16_256", **options)


@pytest.mark.parametrize("name", SHEET)
def test_sizes_are_those_of_the_official_models(name: str) -> None:
    plain_params, params, plain_macs, static, quarter, least = SHEET[name]
    with torch.device("meta"):
        plain, grained = plain_and_grained(name)
    assert parameter_count(plain) == plain_params
    assert parameter_count(grained) + sum(buffer.numel() for buffer in grained.buffers()) == params
    size = (3, 256, 256)
    assert count(plain, size).macs / 1e9 == pytest.approx(plain_macs, abs=6e-5)
    grained.eval()(torch.empty(1, *size, device="meta"))
    official = expected(grained, 0.0)
    assert official.dense_macs / 1e9 == pytest.approx(static, abs=6e-5)
    assert official.least_macs / 1e9 == pytest.approx(least, abs=6e-5)
    if not name.endswith("tiny"):
        return
    # Routers of two choices are cheaper by less than 3e5.
    with torch.device("meta"):
        _, coarse = plain_and_grained(name, splits=(4, 2))
    coarse.eval()(torch.empty(1, *size, device="meta"))
    assert expected(coarse, 0.0).least_macs / 1e9 == pytest.approx(quarter, abs=4e-4)


@pytest.mark.parametrize("size", DPVT)
def test_dpvt_has_the_official_size(size: str) -> None:
    params, macs = DPVT[size]
    with torch.device("meta"):
        network = timm.create_model(f"dpvt_{size}_256")
    assert parameter_count(network) == params
    if macs is not None:
        assert count(network, (3, 256, 256)).conv_linear_macs / 1e9 == pytest.approx(macs, abs=6e-5)


def lively(network: nn.Module) -> nn.Module:
    """A network whose routers choose differently from place to place."""
    for name, parameter in network.named_parameters():
        if "router.gate.weight" in name:
            nn.init.normal_(parameter, std=30.0)
        elif "router.gate.bias" in name:
            nn.init.zeros_(parameter)
    return network


def build(host: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    if host == "deit":
        return lively(timm.create_model("deit_dge_s124_tiny_patch16_256", **SMALL_DEIT, **options))
    return lively(timm.create_model("pvt_dge_s124_tiny_256", **SMALL_PVT, **options))


@torch.no_grad()
@pytest.mark.parametrize("host", ["deit", "pvt"])
@pytest.mark.parametrize("size", [(64, 64), (50, 70), (36, 116)])
def test_images_may_have_any_size(host: str, size: tuple[int, int]) -> None:
    network = build(host, num_classes=5).eval()
    images = torch.randn(3, 3, *size)
    logits = network(images)
    assert logits.isfinite().all()
    grids = [tuple(decision.values.shape[1:]) for decision in noted(network).values()]
    reductions = [4] * 2 if host == "deit" else [4, 8, 16, 16, 32]
    regions = [tuple(math.ceil(math.ceil(side / reduction) / 4) for side in size) for reduction in reductions]
    assert grids == regions
    # What each image is told does not depend on the others.
    torch.testing.assert_close(torch.cat([network(image[None]) for image in images]), logits)


@pytest.mark.parametrize("host", ["deit", "pvt"])
@pytest.mark.parametrize("formula", ["official", "exact"])
def test_a_budget_sees_the_whole_network(host: str, formula: str) -> None:
    network = build(host, num_classes=5, formula=formula)
    images = torch.randn(2, 3, 64, 64)
    size = tuple(images.shape[1:])
    network.train()(images)
    static = static_macs(network, size)
    network(images)
    compute = expected(network, static)
    if formula == "exact":
        assert compute.dense_macs == pytest.approx(count(network, size).macs)
    else:
        # Everything that costs anything is in the formula.
        assert static == 0
    assert ((compute.least_macs <= compute.macs) & (compute.macs <= compute.dense_macs)).all()
    compute.share.mean().backward()
    routers = [parameter for name, parameter in network.named_parameters() if "router" in name]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in routers)


@torch.no_grad()
@pytest.mark.parametrize("host", ["deit", "pvt"])
def test_plain_weights_start_a_training(host: str) -> None:
    """With every region at its finest, the network computes what its plain host does."""
    torch.manual_seed(1)
    if host == "deit":
        plain = timm.create_model("deit_tiny_patch16_224", num_classes=5, **SMALL_DEIT)
    else:
        plain = timm.create_model("pvt_tiny_256", num_classes=5, **SMALL_PVT)
    grained = build(host, num_classes=5)
    for name, parameter in grained.named_parameters():
        if "router.gate.weight" in name:
            nn.init.zeros_(parameter)
        elif "router.gate.bias" in name:
            parameter.copy_(torch.tensor([1.0, 0.0, 0.0]))
    fresh = load(grained, plain.state_dict())
    assert fresh == [name for name in grained.state_dict() if ".router." in name]
    images = torch.randn(2, 3, SMALL_DEIT["img_size"] if host == "deit" else 64, 32 if host == "deit" else 64)
    torch.testing.assert_close(grained.eval()(images), plain.eval()(images))


@torch.no_grad()
def test_maps_of_blocks_are_handed_out() -> None:
    torch.manual_seed(0)
    options = SMALL_DEIT | {"depth": 4}
    network = timm.create_model("deit_dge_s124_tiny_patch16_256", features_only=True, out_indices=(1, 2), **options)
    maps = network.eval()(torch.randn(1, 3, 40, 36))
    assert [tuple(each.shape) for each in maps] == [(1, 12, 10, 9)] * 2
    assert len(network.model.blocks) == 3


def test_detectors_and_segmenters_stand_on_them() -> None:
    torch.manual_seed(0)
    options = SMALL_PVT | {"depths": (1, 1, 1, 1)}
    detector = RetinaNet(num_classes=3, backbone="pvt_dge_s124_tiny_256", options=options, fpn_chans=32)
    images = [torch.rand(3, 75, 90), torch.rand(3, 64, 100)]
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = detector.train()(images, [target, target])
    share = expected(detector, 0.0).share
    assert share.shape == (2,)
    (sum(losses.values()) + share.mean()).backward()
    assert all(p.grad is not None for name, p in detector.named_parameters() if "router" in name)
    segmenter = UperNet(num_classes=5, hidden_dim=8, aux_dim=6, backbone="pvt_dge_s124_tiny_256", options=options)
    with torch.no_grad():
        assert segmenter.eval()(torch.rand(2, 3, 70, 90)).shape == (2, 5, 70, 90)
    assert len([name for name in recorded(segmenter) if ".blocks." in name]) == 4


def test_impossible_hosts_are_refused() -> None:
    with pytest.raises(Mistake, match="one entry for each stage"):
        timm.create_model("pvt_tiny_256", depths=(1, 1))
    with pytest.raises(Mistake, match="'deformable' without splits"):
        timm.create_model("dpvt_tiny_256", splits=(4, 2, 1))
    with pytest.raises(Mistake, match="num_heads must divide"):
        timm.create_model("pvt_tiny_256", num_heads=(1, 2, 3, 8))
