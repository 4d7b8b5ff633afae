"""The small host of the claims on dynamic kernels: its size, and what kernels add to it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

from models.classifiers import dynamic_kernels, timm_classifier
from models.compute import count


def dynamic(layer: Any) -> nn.Module:
    return dynamic_kernels("separable_tiny", 10, layer=layer, kinds=["pointwise"])


def test_has_the_size_of_the_published_experiments() -> None:
    report = count(timm_classifier("separable_tiny", 10), (3, 32, 32))
    assert (report.params, report.macs) == (2274, 114_440)
    assert count(dynamic("cond_conv"), (3, 32, 32)).params == 5710
    assert count(dynamic("dynamic_conv"), (3, 32, 32)).params == 5826


def test_convolutions_start_as_those_of_pytorch() -> None:
    torch.manual_seed(0)
    network = timm_classifier("separable_tiny", 10, options={"stem": 32, "widths": [64], "strides": [1]})
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert bound * 0.98 < module.weight.abs().max() <= bound


def test_has_no_shortcuts() -> None:
    network = timm_classifier("separable_tiny", 10).eval()
    (last,) = network.get_submodule("blocks.4")
    x = torch.ones(1, 20, 4, 4)
    nn.init.zeros_(last.conv_pw.weight)
    assert not last(x).any()


def test_other_widths_and_features() -> None:
    network = timm_classifier("separable_tiny", 7, options={"widths": [4, 9], "strides": [2, 1]})
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    features = timm.create_model("separable_tiny", features_only=True)
    shapes = [tuple(f.shape) for f in features(torch.zeros(1, 3, 32, 32))]
    assert shapes == [(1, 8, 16, 16), (1, 16, 8, 8), (1, 20, 4, 4)]
    assert features.feature_info.reduction() == [2, 4, 8]
    with pytest.raises(ValueError, match="every block has a width and a stride"):
        timm_classifier("separable_tiny", 10, options={"widths": [4]})
