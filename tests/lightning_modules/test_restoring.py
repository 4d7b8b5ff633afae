"""What a training that goes on takes from its checkpoint, and what from the command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_modules.optimization import Part, restored
from lightning_modules.restoring import check_network


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def stepped(part: Part, optimizer: Optimizer, steps: int = 2) -> Optimizer:
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        part.module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return optimizer


def resumed(part: Part, saved: dict[str, Any]) -> Optimizer:
    """The optimiser of a part with the state of another one, as Lightning puts it in."""
    built = part.build()
    built[0].load_state_dict(restored({"network": part}, {"network": built}, saved))
    return built[0]


def moments(part: Part, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    return {name: optimizer.state[parameter]["exp_avg"] for name, parameter in part.module.named_parameters()}


ADAM = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def saved_by(optimizer: Callable[..., Optimizer] = ADAM, **options: Any) -> tuple[Part, dict[str, Any]]:
    part = Part(network(), optimizer, **options)
    return part, stepped(part, part.build()[0]).state_dict()


def test_without_changes_nothing_changes() -> None:
    part, saved = saved_by()
    again = resumed(part, saved).state_dict()
    assert again["param_groups"] == saved["param_groups"]
    assert again["state"].keys() == saved["state"].keys()
    for index, state in saved["state"].items():
        assert all(torch.equal(state[key], again["state"][index][key]) for key in state)


def test_options_are_the_commands() -> None:
    part, saved = saved_by()
    new = Part(part.module, partial(torch.optim.AdamW, lr=0.02, weight_decay=0.3, betas=(0.5, 0.9), eps=1e-3))
    decayed, exempt = resumed(new, saved).param_groups
    assert (decayed["lr"], decayed["weight_decay"], exempt["weight_decay"]) == (0.02, 0.3, 0.0)
    assert {(group["betas"], group["eps"]) for group in (decayed, exempt)} == {((0.5, 0.9), 1e-3)}


@pytest.mark.parametrize("options", [{"decay_all": True}, {"lr_multipliers": {"2.": 0.1}}])
def test_moments_find_their_parameters_in_other_groups(options: dict[str, Any]) -> None:
    part, saved = saved_by()
    before = part.build()[0]
    before.load_state_dict(saved)
    new = Part(part.module, ADAM, **options)
    after = resumed(new, saved)
    assert len(after.param_groups) != len(saved["param_groups"])
    expected = moments(part, before)
    assert {name: torch.equal(value, expected[name]) for name, value in moments(new, after).items()} == dict.fromkeys(
        expected, True
    )
    stepped(new, after)


def test_what_an_optimiser_counts_in_its_groups_is_the_saved() -> None:
    lamb = partial(timm.optim.Lamb, lr=0.01)
    part, saved = saved_by(lamb)
    new = Part(part.module, partial(timm.optim.Lamb, lr=0.01, eps=1e-3))
    assert [(int(group["step"]), group["eps"]) for group in resumed(new, saved).param_groups] == [(2, 1e-3)] * 2


def test_what_is_counted_from_the_start_is_the_saved_and_what_is_new_begins() -> None:
    class Counting(torch.optim.SGD):
        counters: tuple[str, ...] = ("seen",)

        def __init__(self, params: Any, lr: float = 0.01) -> None:
            super().__init__(params, lr)
            for group in self.param_groups:
                group |= dict.fromkeys(self.counters, 0)

        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["seen"] += 1
            return super().step(closure)

    class Later(Counting):
        counters = ("seen", "averaged")

    part, saved = saved_by(Counting)
    groups = resumed(Part(part.module, Later), saved).param_groups
    assert [(group["seen"], group["averaged"]) for group in groups] == [(2, 0)] * 2


def test_an_option_that_the_state_can_do_without_is_applied() -> None:
    part, saved = saved_by(partial(torch.optim.SGD, lr=0.01))
    new = Part(part.module, partial(torch.optim.SGD, lr=0.01, momentum=0.9))
    assert {group["momentum"] for group in stepped(new, resumed(new, saved)).param_groups} == {0.9}


@pytest.mark.parametrize(
    ("optimizer", "named"),
    [
        (partial(torch.optim.AdamW, amsgrad=True), "amsgrad: False -> True"),
        (torch.optim.RMSprop, "RMSprop with alpha: None -> 0.99, centered: None -> False"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(optimizer: Callable[..., Optimizer], named: str) -> None:
    part, saved = saved_by()
    with pytest.raises(ValueError, match="does not fit") as refused:
        resumed(Part(part.module, optimizer), saved)
    assert named in str(refused.value)


def test_other_parameters_and_parts_are_refused() -> None:
    part, saved = saved_by()
    part.module[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"optimiser trained 0\.weight, 0\.bias, which stay"):
        resumed(part, saved)
    part, saved = saved_by()
    module = network()
    module[0].requires_grad_(False)
    some = Part(module, ADAM)
    with pytest.raises(ValueError, match=r"did not train 0\.weight, 0\.bias"):
        resumed(part, stepped(some, some.build()[0]).state_dict())
    with pytest.raises(ValueError, match="trained one part, but the task trains network, gate"):
        restored({"network": part, "gate": part}, {}, saved)
    with pytest.raises(ValueError, match="trained the parts a, b, but the task trains network"):
        restored({"network": part}, {}, {"a": saved, "b": saved})


def test_another_network_is_named() -> None:
    module = network()
    state = module.state_dict()
    check_network(module, state)
    state["0.weight"] = torch.zeros(4, 5)
    state["more"] = state.pop("2.bias")
    with pytest.raises(ValueError, match="another network") as refused:
        check_network(module, state)
    told = str(refused.value)
    assert "nothing for 2.bias" in told
    assert "no place for more" in told
    assert "0.weight ([4, 5] there, [4, 3] here)" in told
