"""Networks with dynamic kernels at the published sizes."""

import re
from functools import cache

import pytest
import timm
import torch

import models.backbones  # noqa: F401  registers them
from models import compute
from tests.library.kernel_mixture_costs import COMPUTED, MEASURED


@cache
def report(name):
    with torch.device("meta"):
        network = timm.create_model(name)
    return compute.count(network, network.default_cfg["input_size"])


@pytest.mark.parametrize("name", MEASURED)
def test_published_size(name):
    params, macs = MEASURED[name]
    assert report(name).params == params
    assert report(name).macs / 1e6 == pytest.approx(macs, abs=0.06)


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_size(name):
    params, macs = COMPUTED[name]
    assert round(report(name).params / 1e3) == params
    assert report(name).macs / 1e6 == pytest.approx(macs, abs=0.06)


def test_condconv_mobilenetv2():
    counted = report("condconv_mobilenetv2_100")
    # The measured implementation has no bias in its classifier; ours has one for each expert.
    assert counted.params == 22_877_496 + 8 * 1000
    assert counted.macs / 1e6 == pytest.approx(322.9, abs=0.06)
    assert counted.conv_macs / 1e6 == pytest.approx(300.8, abs=0.06)


def test_parts_of_the_cost_of_efficientnet():
    counted = report("condconv_efficientnet_b0_8e")
    assert counted.conv_macs / 1e6 == pytest.approx(384.53, abs=0.01)
    assert counted.linear_macs / 1e6 == pytest.approx(21.39 + 1.29, abs=0.01)


@pytest.mark.parametrize(
    "name",
    [
        "condconv_mobilenetv1_100",
        "condconv_resnet50",
        "dy_mobilenetv2_035",
        "dy_mobilenetv2_075",
        "dy_mobilenetv3_small_100",
        "dy_mobilenetv3_large_100",
    ],
)
def test_the_other_registered_ones_run(name):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=5)
    assert network(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 5)
    with torch.device("meta"):
        static = timm.create_model(name.removeprefix("condconv_").removeprefix("dy_"), num_classes=5)
    assert compute.parameter_count(network) > 1.5 * compute.parameter_count(static)


@pytest.mark.parametrize("name", ["condconv_mobilenetv2_100", "dy_mobilenetv3_small_100", "dy_resnet10"])
def test_features_are_those_of_the_network(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    extractor = timm.create_model(name, features_only=True).eval()
    # The extractor flattens the sequence of stages.
    extractor.load_state_dict(
        {name: network.state_dict()[re.sub(r"^blocks_", "blocks.", name)] for name in extractor.state_dict()}
    )
    images = torch.randn(2, 3, 64, 64)
    features = extractor(images)
    assert [f.shape[1] for f in features] == extractor.feature_info.channels()
    assert [64 // f.shape[2] for f in features] == extractor.feature_info.reduction()
    expected = network.forward_intermediates(images, intermediates_only=True)
    for actual, wanted in zip(features, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
