from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.compute import count, executed, expected, recorded, static_macs
from models.decisions import noted
from models.layers.routed_attention import PathController, RoutedAttention
from models.layers.spans import SpanMasks, Spans

ORDERS = (0, 1, 2)


def spans(size: tuple[int, int] = (8, 9), batch: int = 5) -> Spans:
    padding = torch.zeros(batch, size[0] * size[1], dtype=torch.bool)
    padding[0, 20:] = True
    return SpanMasks(ORDERS)(size, padding)


def layer(**options: Any) -> RoutedAttention:
    torch.manual_seed(0)
    return RoutedAttention(8, 2, len(ORDERS), **options).double().eval()


def tokens(batch: int = 5) -> Tensor:
    return torch.randn(batch, 72, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Fixed(torch.nn.Module):
    """A path controller that has been told what to say."""

    one_hot = True

    def __init__(self, choice: list[int]) -> None:
        super().__init__()
        self.shares = torch.nn.functional.one_hot(torch.tensor(choice), len(ORDERS)).double()

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.shares


@pytest.mark.parametrize("choice", [[0, 1, 2, 1, 0], [1, 1, 1, 1, 1], [2, 0, 2, 0, 2]])
def test_one_span_alone_is_what_the_mixture_has_of_it(choice: list[int]) -> None:
    network, x = layer(binarize=True), tokens()
    network.controller = Fixed(choice)  # type: ignore[assignment]
    alone = network(x, spans())
    network.mixing.single = False
    torch.testing.assert_close(alone, network(x, spans()))
    assert noted(network)["mixing"].values.argmax(1).tolist() == choice
    assert noted(network)["mixing"].names == ("global", "3x3", "5x5")


def test_compute_that_is_recorded_is_compute_that_ran() -> None:
    network, x, whole = layer(binarize=True), tokens(), spans()
    network.controller = Fixed([0] * 5)  # type: ignore[assignment]
    static = static_macs(network, inputs=(x, whole))
    assert static == 4 * 72 * 8 * 8
    # Whole grid; tiles of 4x4 queries, of which 2x3 cover the grid, with the keys around them.
    for choice, core in (([0] * 5, 72 * 72), ([1] * 5, 8 * 12 * 36), ([2] * 5, 8 * 12 * 64), ([0, 1, 0, 1, 0], None)):
        network.controller = Fixed(choice)  # type: ignore[assignment]
        ran = executed(network, x, whole).macs
        assert core is None or ran == static + 2 * core * 8
        said = expected(network, static)
        assert said.macs.mean() == ran
        assert said.dense_macs == count(network, inputs=(x, whole)).macs == static + 2 * 72 * 72 * 8
        network(x, whole)
    assert said.least_macs == static + 2 * 8 * 12 * 36 * 8


def test_a_mixture_has_nothing_to_save() -> None:
    network = layer()
    network(tokens(), spans())
    assert not recorded(network)


@pytest.mark.parametrize("routing", ["soft", "hard"])
def test_evaluation_is_the_same_every_time(routing: Any) -> None:
    network, x = layer(routing=routing), tokens()
    assert torch.equal(network(x, spans()), network(x, spans()))
    shares = noted(network)["mixing"].values
    best = layer(routing=routing, eval_routing="argmax")
    best(x, spans())
    assert torch.equal(noted(best)["mixing"].values, (shares == shares.max(1, keepdim=True).values).double())


def test_draws_in_evaluation_are_asked_for() -> None:
    """One draw is the best of softmax(logits) with Gumbel noise, whatever the temperature."""
    torch.manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    controller = PathController(4, 3, "hard", eval_routing="sample", binarize=True, temperature=7.0).eval()
    share = controller.route(logits).mean(0)
    assert ((share - logits[0].exp()).abs() < 4 * (0.25 / 20_000) ** 0.5).all()
    # Without binarising it is a mixture, nearly even at this temperature, and another one each time.
    controller.binarize = False
    first, second = controller.route(logits[:2])
    assert not torch.equal(first, second)
    assert first.max() < 0.6
    # In training there is a draw whatever evaluation does, never one span alone, and with a gradient.
    controller = PathController(4, 3, "hard", eval_routing="mean", binarize=True)
    drawn = controller.route(logits[:2].clone().requires_grad_())
    assert 0 < drawn.min() <= drawn.max() < 1
    assert drawn.requires_grad
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("pooling", ["avg", "attention", "fc"])
def test_padding_is_pooled_unless_it_is_not_wanted(pooling: Any) -> None:
    torch.manual_seed(0)
    x, padding = tokens(3), torch.zeros(3, 72, dtype=torch.bool)
    padding[0, 9:], padding[1] = True, True
    published, aware = (
        PathController(8, 3, pooling=pooling, pool_padding=pool).double().eval() for pool in (True, False)
    )
    aware.load_state_dict(published.state_dict())
    assert not torch.allclose(published(x, padding)[0], aware(x, padding)[0])
    torch.testing.assert_close(aware(x[:1, :9], padding[:1, :9])[0], aware(x, padding)[0])
    # No padding changes nothing, and nothing but padding is pooled alike.
    torch.testing.assert_close(aware(x, padding)[2], published(x, padding)[2])
    alike = x[1:2].mean(1, keepdim=True)
    torch.testing.assert_close(aware(x, padding)[1:2], published(alike, padding[1:2, :1]))
    assert aware(x[:1], padding[:1]).shape == (1, 3)


def test_shares_may_be_learned_and_the_same_for_all() -> None:
    network, x = layer(routing="fixed"), tokens()
    network(x, spans()).sum().backward()
    constants = network.controller.constants
    assert constants is not None
    assert constants.grad is not None
    assert torch.equal(noted(network)["mixing"].values, torch.full((5, 3), 1 / 3, dtype=torch.float64))
    plain = RoutedAttention(8, 2, 1, "fixed")
    assert {name.split(".")[0] for name, _ in plain.named_parameters()} == {"query", "key", "value", "merge"}


def test_the_temperature_can_change_and_is_no_state() -> None:
    controller = PathController(4, 3, "hard", temperature=3.0)
    assert dict(controller.named_buffers())["temperature"] == 3.0
    assert "temperature" not in controller.state_dict()


def test_options_that_cannot_be_are_refused() -> None:
    for options, message in (
        ({"pooling": "max"}, "pooling is one of avg, attention, fc, not 'max'"),
        ({"eval_routing": "best"}, "eval_routing is one of mean, argmax, sample"),
        ({"temperature": 0.0}, "above 0, not 0.0"),
        ({"routing": "none"}, "routing is one of soft, hard, fixed"),
    ):
        with pytest.raises(ValueError, match=message):
            RoutedAttention(8, 2, 3, **options)
    with pytest.raises(ValueError, match="3 do not divide 8"):
        RoutedAttention(8, 3, 3)
