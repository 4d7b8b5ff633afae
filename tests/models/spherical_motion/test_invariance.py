"""Scale-invariant weights are found whatever they are called."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from models.spherical_motion import invariant_weights

IMAGES = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(1))


class Branches(nn.Module):
    """Two convolutions that are added before their norm: neither is invariant alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.one(x) + self.other(x))


class QKNorm(nn.Module):
    """Queries and keys have a norm for each head, values none: two thirds of one weight are invariant."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).view(8, 36, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q, k = nn.functional.layer_norm(q, (4,)), nn.functional.layer_norm(k, (4,))
        return nn.functional.scaled_dot_product_attention(q, k, v)


def frozen(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels).eval()


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, int]]]] = {
    "batch norm, with a bias that it cancels": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
        {"0.weight": (6, 0)},
    ),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.GroupNorm(3, 6)), {"0.weight": (3, 0)}),
    "instance norm": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6)), {"0.weight": (6, 0)}),
    "layer norm, with a bias that is invariant with it": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 10), nn.LayerNorm(10)),
        {"1.weight": (1, 0), "1.bias": (1, 0)},
    ),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)), {"0.weight": (4, 0)}),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
        {"0.weight": (6, 0)},
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(144, 5)), nn.Sigmoid()),
        {"1.parametrizations.weight.original1": (5, 0)},
    ),
    "through an activation": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)),
        {"0.weight": (1, 0), "2.weight": (4, 0)},
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.Dropout(), nn.BatchNorm2d(6)),
        {"0.weight": (6, 0)},
    ),
    "no norm": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)), {}),
    "a norm that is frozen": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), frozen(6)), {}),
    "a bent line before the norm": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.GELU(), nn.BatchNorm2d(6)), {}),
    "branches": (Branches, {}),
    "attention": (QKNorm, {"qkv.weight": (6, 2)}),
}


@pytest.mark.parametrize("case", CASES)
def test_invariant_weights_are_found(case: str) -> None:
    torch.manual_seed(0)
    build, expected = CASES[case]
    module = build()
    classifier = nn.LazyLinear(3)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(classifier(module(IMAGES).flatten(1)), torch.arange(8) % 3)

    loss()
    found = invariant_weights(module, loss)
    assert {name: (each.blocks, len(each.loose)) for each in found for name in each.tensors} == expected


def test_nothing_is_disturbed() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.Flatten(), nn.Linear(96, 3))
    module[4].weight.grad = torch.ones(3, 96)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]

    def loss() -> Tensor:
        return (module(IMAGES) * random.random() * np.random.rand()).square().mean()

    assert [each.tensors for each in invariant_weights(module, loss)] == [("0.weight",)]
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # type: ignore[index]
    assert torch.equal(module[4].weight.grad, torch.ones(3, 96))
    assert module[0].weight.grad is None
