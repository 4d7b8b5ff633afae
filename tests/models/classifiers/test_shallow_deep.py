"""Shallow-deep networks: a backbone's own maps, a classifier on each, and nothing that an exit does not need."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from models.anytime import MultiExit, Policy, exit_costs, run
from models.classifiers import ShallowDeepNetwork
from models.classifiers.shallow_deep import InternalClassifier
from models.compute import count
from models.mistakes import Mistake

BACKBONES = {
    "narrow_resnet": {},
    "tf_efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    # Its maps are [B, h, w, channels].
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1), "img_size": 64},
}


def images(number: int, side: int = 64) -> Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_exits_are_classifiers_of_timms_maps(name: str) -> None:
    torch.manual_seed(0)
    options = BACKBONES[name]
    network = ShallowDeepNetwork(name, num_classes=3, cells=2, options=options).eval()
    assert isinstance(network, MultiExit)
    timms = timm.create_model(name, features_only=True, **options).eval()
    own = list(network.backbone.state_dict().values())
    theirs = timms.state_dict()
    timms.load_state_dict(dict(zip(theirs, own, strict=True)))
    maps = timms(images(2))
    if network.channels_last:
        maps = [each.permute(0, 3, 1, 2) for each in maps]
    expected = [head(each) for head, each in zip(network.heads, maps, strict=True)]
    torch.testing.assert_close(network(images(2)), expected, rtol=0, atol=0)


@torch.no_grad()
def test_a_classifier_pools_by_a_mixture() -> None:
    head = InternalClassifier(2, 5, cells=2).eval()
    head.mixture.fill_(1.5)
    head.norm.running_mean.copy_(torch.arange(8.0))
    x = images(3, side=4)[:, :2]
    share = 1 / (1 + torch.tensor(-1.5).exp())
    cells = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    pooled = (share * cells.amax(-1) + (1 - share) * cells.mean(-1)).flatten(1)
    normed = (pooled - torch.arange(8.0)) / (1 + 1e-5) ** 0.5
    expected = normed @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(x), expected)


def test_nothing_runs_that_an_exit_does_not_need() -> None:
    torch.manual_seed(0)
    network = ShallowDeepNetwork("narrow_resnet", num_classes=4, levels=[1, 3]).eval()
    assert network.num_exits == 2
    costs = exit_costs(network, (3, 64, 64))
    heads = [each.linear.weight.numel() for each in network.heads]
    whole = timm.create_model("narrow_resnet", features_only=True, out_indices=(1, 3))
    first = timm.create_model("narrow_resnet", features_only=True, out_indices=(1,))
    # Both with the classifiers that have run by then.
    assert costs == [
        count(first, (3, 64, 64)).macs + heads[0],
        count(whole, (3, 64, 64)).macs + sum(heads),
    ]
    with torch.no_grad():
        every = network(images(6))
    sure = every[0].softmax(1).amax(1)
    policy = Policy("max_prob", (sure.sort().values[2:4].mean().item(), 0.0))
    logits, exits = run(network, images(6), policy)
    assert exits.sum() == 3
    expected = torch.where((exits == 0)[:, None], every[0], every[1])
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_stays_as_it_is(frozen: bool) -> None:
    torch.manual_seed(0)
    network = ShallowDeepNetwork("tf_efficientnet_lite0", num_classes=4, cells=1, frozen=frozen).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    sum(logits.square().sum() for logits in network(images(2))).backward()  # type: ignore[union-attr]
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("backbone.") for name in changed) != frozen
    assert {name for name in before if name.startswith("heads.")} <= changed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone": "resnet_of_nobody"}, "no network is called 'resnet_of_nobody'"),
        ({"backbone": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224 is not run as a sequence of stages by timm"),
        ({"backbone": "narrow_resnet", "levels": [3, 1]}, "levels are increasing indices of the 5 feature maps"),
        ({"backbone": "narrow_resnet", "levels": [4, 5]}, "levels are increasing indices of the 5 feature maps"),
        ({"backbone": "narrow_resnet", "levels": []}, "levels are increasing indices of the 5 feature maps"),
        ({"backbone": "narrow_resnet", "cells": 0}, "cells=0 must be 1 or more"),
    ],
)
def test_what_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(Mistake, match=said.replace("(", r"\(")):
        ShallowDeepNetwork(**options)  # type: ignore[arg-type]
