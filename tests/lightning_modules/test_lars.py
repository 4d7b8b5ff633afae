"""LARS: what the recorded variants do not say."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_modules import LARS
from models.mistakes import Mistake


def stepped(variant: str, gradient: float = 0.5, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = nn.Parameter(torch.full((2, 2), 2.0)), nn.Parameter(torch.full((2,), 2.0))
    weight.grad, bias.grad = torch.full((2, 2), gradient), torch.full((2,), gradient)
    LARS([weight, bias], **{"lr": 1.0, "eta": 0.1, "weight_decay": 0.0, **options}, variant=variant).step()  # type: ignore[arg-type]
    return 2.0 - weight.detach()[0, 0], 2.0 - bias.detach()[0]


@pytest.mark.parametrize("variant", ["byol", "dino", "solo", "solo_clip"])
@pytest.mark.parametrize("gradient", [0.5, 50.0])
def test_a_step_is_a_share_of_the_weight_whatever_the_gradient_is(variant: str, gradient: float) -> None:
    weight, bias = stepped(variant, gradient)
    assert weight.item() == pytest.approx(0.2, rel=1e-5)
    # Biases get the gradient itself.
    assert bias.item() == pytest.approx(gradient)


def test_a_clipped_factor_is_at_most_that_of_sgd() -> None:
    assert stepped("solo", 0.01)[0].item() == pytest.approx(0.2, rel=1e-4)
    assert stepped("solo_clip", 0.01)[0].item() == pytest.approx(0.01)


def test_without_a_gradient_nothing_adapts() -> None:
    weight, bias = stepped("byol", 0.0)
    assert weight.item() == bias.item() == 0


def test_a_loaded_state_goes_on() -> None:
    def training(steps: int) -> tuple[nn.Parameter, LARS]:
        weight = nn.Parameter(torch.arange(1.0, 5.0).reshape(2, 2))
        optimizer = LARS([weight], lr=0.5)
        go(weight, optimizer, steps)
        return weight, optimizer

    def go(weight: nn.Parameter, optimizer: LARS, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()

    whole, _ = training(5)
    weight, before = training(2)
    after = LARS([weight], lr=0.5)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    go(weight, after, 3)
    assert torch.equal(weight, whole)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(Mistake, match="no variant of LARS is called 'lamb'; there are byol, dino, solo, solo_clip"):
        LARS([nn.Parameter(torch.zeros(1))], variant="lamb")  # type: ignore[arg-type]
