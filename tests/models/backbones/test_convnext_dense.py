from typing import Any

import pytest
import timm
import torch
from torch import nn

import models  # noqa: F401 (registers the backbones)
from models.official import LayoutError, load
from models.official.convnext import LAYOUT

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


def dense(size: str = "tiny", **options: Any) -> nn.Module:
    return timm.create_model(f"convnext_{size}_dense", features_only=True, **options)


def test_backbone_contract() -> None:
    network = dense(**SMALL).eval()
    features = network(torch.randn(2, 3, 64, 96))
    assert network.feature_info.channels() == [8, 16, 24, 32]
    assert network.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(feature.shape) for feature in features] == [
        (2, 8, 16, 24),
        (2, 16, 8, 12),
        (2, 24, 4, 6),
        (2, 32, 2, 3),
    ]
    for feature in features:
        torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature[:, 0]), atol=1e-5, rtol=0)
        assert feature.var(1, correction=0).mean().item() == pytest.approx(1, abs=1e-2)


def test_next_stage_gets_the_map_before_the_norm() -> None:
    network = dense(**SMALL).eval()
    images = torch.randn(1, 3, 64, 64)
    before = network(images)
    with torch.no_grad():
        network.norm1.weight.mul_(3)
    after = network(images)
    torch.testing.assert_close(after[1], 3 * before[1])
    torch.testing.assert_close(after[2:], before[2:])


def test_only_requested_stages_exist() -> None:
    network = dense(out_indices=(0, -2), drop_path_rate=0.1, **SMALL)
    assert network.feature_info.channels() == [8, 24]
    assert len(network.stages) == 3
    sum(feature.square().sum() for feature in network(torch.randn(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert {name for name, _ in network.named_children()} == {"stem", "stages", "norm0", "norm2"}


@pytest.mark.parametrize("out_indices", [(), (1, 0), (0, 4), (-5,)])
def test_impossible_stages_are_refused(out_indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="out_indices"):
        dense(out_indices=out_indices, **SMALL)


def test_official_weights_of_all_maps_fit_those_that_are_asked_for() -> None:
    whole = dense(**SMALL).eval()
    official = LAYOUT.to_official(whole.state_dict())
    images = torch.randn(1, 3, 64, 64)
    for indices in ((1, 2, 3), (0, 1), (2,)):
        network = dense(out_indices=indices, **SMALL).eval()
        load(network, LAYOUT.to_ours(official))
        for i, features in zip(indices, network(images), strict=True):
            torch.testing.assert_close(features, whole(images)[i])
    with pytest.raises(LayoutError, match="unknown stages"):
        load(dense(**SMALL | {"depths": (1, 1, 1, 1)}), LAYOUT.to_ours(official))
    with pytest.raises(LayoutError, match="missing norm3"):
        load(dense(out_indices=(1, 3), **SMALL), dense(out_indices=(1, 2), **SMALL).state_dict())


def test_without_features_only_it_is_the_classifier() -> None:
    network = timm.create_model("convnext_base_dense", num_classes=5, **SMALL)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "xlarge"])
def test_every_size_has_its_trunk(size: str) -> None:
    with torch.device("meta"):
        network, trunk = dense(size), timm.create_model(f"convnext_{size}", num_classes=0)
    channels = [info["num_chs"] for info in trunk.feature_info]
    assert network.feature_info.channels() == channels
    params = sum(p.numel() for p in trunk.parameters()) - 2 * channels[-1] + 2 * sum(channels)
    assert sum(p.numel() for p in network.parameters()) == params
