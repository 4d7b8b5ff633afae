from typing import Any

import pytest
import torch
from torch import nn

from models.detectors.batching import pad
from models.detectors.features import Features

NARROW = {"layers": [1, 1, 1, 1], "width": 8}


def test_maps_come_with_their_padding() -> None:
    features = Features("narrow_resnet", NARROW)
    assert features.channels == [64, 128, 256]
    assert features.strides == [8, 16, 32]
    assert features.size_divisor == 32
    maps = features(*pad([torch.rand(3, 64, 96), torch.rand(3, 40, 32)]))
    for (x, padding), channels, stride in zip(maps, features.channels, features.strides, strict=True):
        assert x.shape == (2, channels, 64 // stride, 96 // stride)
        assert padding.dtype == torch.bool
        assert not padding[0].any()
        # A cell is padding if the pixel at its corner is.
        assert (~padding[1]).sum() == -(-40 // stride) * -(-32 // stride)
        assert not padding[1, : -(-40 // stride), : -(-32 // stride)].any()


def test_frozen_norms_are_constants_that_let_signals_pass() -> None:
    features = Features("narrow_resnet", NARROW).train()
    before = {name: value.clone() for name, value in features.named_buffers()}
    images, padding = pad([torch.rand(3, 64, 64)])
    (*_, (x, _)) = features(images, padding)
    assert before
    assert all(torch.equal(value, before[name]) for name, value in features.named_buffers())
    x.square().mean().backward()
    # A residual branch whose last norm stood at zero would have no gradient.
    for name, parameter in features.named_parameters():
        assert parameter.requires_grad is not name.startswith(("body.conv1", "body.layer1"))
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name


def test_norms_and_stages_may_train() -> None:
    features = Features("narrow_resnet", NARROW, frozen_norm=False, frozen_stages=0).train()
    assert all(parameter.requires_grad for parameter in features.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in features.modules())
    # No layers that the maps do not need.
    (*_, (x, _)) = features(*pad([torch.rand(3, 64, 64), torch.rand(3, 64, 64)]))
    x.square().mean().backward()
    assert all(parameter.grad is not None for parameter in features.parameters())


def test_dilation_keeps_the_resolution() -> None:
    features = Features("narrow_resnet", NARROW | {"output_stride": 16}, levels=[-1])
    assert features.strides == [16]
    assert features.size_divisor == 16
    ((x, _),) = features(*pad([torch.rand(3, 64, 64)]))
    assert x.shape[-2:] == (4, 4)


def test_channels_come_first() -> None:
    options = {"img_size": (64, 96), "strict_img_size": False, "embed_dim": 16, "depths": (1, 1, 1, 1)}
    features = Features("swin_tiny_patch4_window7_224", options | {"num_heads": (1, 2, 2, 4)}, frozen_stages=0)
    maps = features(*pad([torch.rand(3, 64, 96)]))
    assert [tuple(x.shape[1:]) for x, _ in maps] == [(32, 8, 12), (64, 4, 6), (128, 2, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [3]}, "does not have the feature maps"),
        ({"levels": [2, 1]}, "increasing indices of the 3 feature maps"),
        ({"levels": []}, "increasing indices of the 3 feature maps"),
        ({"frozen_stages": 4}, "can be 0 to 3, not 4"),
        ({"frozen_stages": -1}, "can be 0 to 3, not -1"),
    ],
)
def test_what_a_backbone_does_not_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features("plain_conv", **options)
