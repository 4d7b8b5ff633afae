"""Tiny networks of the families that pruning has to understand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.regnet import RegNet, RegNetCfg
from torch import Tensor, nn

from models.classifiers import timm_classifier
from models.pruning.groups import ChannelGroup
from models.pruning.soundness import drawn_anew, prunable_groups


def _vgg() -> nn.Module:
    """Maps that are flattened: a channel is many inputs of the next layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(48, 10),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Linear(10, 5),
    )


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm_classifier(name, num_classes=5, options=options)


def _inverted(*blocks: str) -> Callable[[], nn.Module]:
    """Inverted residual blocks, as of MobileNets and EfficientNets."""
    return lambda: EfficientNet(
        decode_arch_def([[block] for block in blocks]), num_classes=5, num_features=32, stem_size=8
    )


def _regnet() -> nn.Module:
    return RegNet(RegNetCfg(w0=16, wa=16, wm=2, depth=8, group_size=8, se_ratio=0.25), num_classes=5)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vgg": _vgg,
    "resnet": _timm("resnet18", layers=[1, 1, 2, 1], channels=[8, 8, 16, 16]),
    "bottleneck": _timm("resnext50_32x4d", layers=[1] * 4, channels=[16] * 4, cardinality=4, base_width=16),
    "mobilenet": _inverted("ds_r1_k3_s1_e1_c8", "ir_r2_k3_s2_e3_c12"),
    "efficientnet": _inverted("ds_r1_k3_s1_e1_c8_se0.25", "ir_r2_k3_s2_e3_c12_se0.25"),
    "dense": _timm("densenet121", growth_rate=4, block_config=(2, 2)),
    "convnext": _timm("convnext_atto", depths=[1, 1, 1, 1], dims=[8, 12, 16, 20]),
    "regnet": _regnet,
}


@cache
def family(name: str) -> tuple[nn.Module, list[ChannelGroup], list[str]]:
    """A network in evaluation mode whose weights hide nothing, with its groups and those that stay whole."""
    torch.manual_seed(0)
    network = drawn_anew(FAMILIES[name]().eval())
    return network, *prunable_groups(network, images())


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
