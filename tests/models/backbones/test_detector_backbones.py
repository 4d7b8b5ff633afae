import pytest
import timm
import torch
from timm.models.resnet import Bottleneck, ResNet


def test_plain_conv_halves_at_every_stage() -> None:
    network = timm.create_model("plain_conv", features_only=True, widths=[8, 16, 24, 24], out_indices=(2, 3))
    assert network.feature_info.channels() == [24, 24]
    assert network.feature_info.reduction() == [8, 16]
    assert [tuple(x.shape) for x in network(torch.rand(2, 3, 64, 48))] == [(2, 24, 8, 6), (2, 24, 4, 3)]
    default = timm.create_model("plain_conv", features_only=True)
    assert default.feature_info.channels() == [24, 48, 64]


def test_plain_conv_classifies() -> None:
    network = timm.create_model("plain_conv", num_classes=5)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    network.reset_classifier(7)
    assert network.get_classifier().out_features == network.num_classes == 7


def test_plain_conv_of_other_strides_depth_and_norms() -> None:
    options = {"widths": [6, 8, 12], "strides": [1, 2, 2], "depth": 1, "norm": "batch"}
    network = timm.create_model("plain_conv", features_only=True, **options)
    assert network.feature_info.reduction() == [1, 2, 4]
    assert [tuple(x.shape) for x in network(torch.rand(2, 3, 16, 16))] == [(2, 6, 16, 16), (2, 8, 8, 8), (2, 12, 4, 4)]
    kinds = [type(module) for module in network.modules() if not list(module.children())]
    assert kinds == [torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU] * 3
    with pytest.raises(ValueError, match=r"a stride and a convolution or more, not \[6, 8, 12\], \[2\] and 1"):
        timm.create_model("plain_conv", **options | {"strides": [2]})


def test_plain_conv_has_groups_of_channels() -> None:
    with pytest.raises(ValueError, match=r"multiples of 8, not \[8, 12\]"):
        timm.create_model("plain_conv", widths=[8, 12])


def test_narrow_resnet_at_full_width_is_the_usual_one() -> None:
    layers = (1, 2, 1, 1)
    usual = ResNet(Bottleneck, layers, num_classes=3).eval()
    network = timm.create_model("narrow_resnet", layers=layers, width=64, num_classes=3).eval()
    network.load_state_dict(usual.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(network(images), usual(images))


def test_narrow_resnet_is_narrow() -> None:
    network = timm.create_model("narrow_resnet", features_only=True, layers=(1, 1, 1, 1), width=3)
    assert network.feature_info.channels() == [3, 12, 24, 48, 96]
    assert [x.shape[1] for x in network(torch.rand(1, 3, 64, 64))] == [3, 12, 24, 48, 96]
