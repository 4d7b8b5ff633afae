"""Thresholds of exits as a space: what is chosen is what runs, and what it costs is what ran."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.anytime import ALWAYS, Policy, exit_costs, run
from models.compute import executed
from models.mistakes import Mistake
from models.supernet import Divisible, Observant, Searchable, SearchableExits, chosen, searchable


class Exits(nn.Module):
    """Three linear layers, each with an exit."""

    num_exits, num_classes = 3, 4

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(12, 4) for _ in range(3))

    def start(self, images: Tensor) -> Any:
        return images.flatten(1)

    def advance(self, exit: int, state: Any) -> tuple[Tensor, Any]:
        state = self.layers[exit](state).relu()
        return 9 * self.heads[exit](state), state

    def forward(self, images: Tensor) -> list[Tensor]:
        state, outputs = self.start(images), []
        for exit in range(self.num_exits):
            output, state = self.advance(exit, state)
            outputs.append(output)
        return outputs


@pytest.fixture
def network() -> SearchableExits:
    torch.manual_seed(0)
    return SearchableExits(Exits(), levels=[0.0, 0.6, 0.8, 1.01]).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def test_what_is_chosen_runs(network: SearchableExits, images: Tensor) -> None:
    exits = network.multi_exit
    assert len(network(images)) == 3
    network.choose((0.6, 0.8))
    assert torch.equal(network(images), run(exits, images, Policy("max_prob", (0.6, 0.8, ALWAYS)))[0])  # type: ignore[arg-type]
    network.choose((0.0, 0.8))
    torch.testing.assert_close(network(images), exits(images)[0])
    network.choose((1.01, 1.01))
    torch.testing.assert_close(network(images), exits(images)[2])
    assert all(name.startswith("multi_exit.") for name in network.state_dict())


def test_it_costs_what_runs_for_a_mean_image(network: SearchableExits, images: Tensor) -> None:
    with pytest.raises(Mistake, match="`observe` some first"):
        network.cost((0.6, 0.8))
    for part in images.split(15):
        network.observe(part)
    up_to = exit_costs(network.multi_exit, (3, 2, 2))  # type: ignore[arg-type]
    assert network.cost((0.0, 1.01))["multiply_adds"] == up_to[0]
    assert network.cost((1.01, 1.01))["multiply_adds"] == up_to[2]
    for thresholds in ((0.6, 0.8), (0.8, 0.6)):
        network.choose(thresholds)
        ran = sum(executed(network, image).macs for image in images.split(1)) / len(images)
        assert network.cost(thresholds)["multiply_adds"] == pytest.approx(ran, rel=1e-6)
        assert sum(network.pieces(thresholds).values()) == pytest.approx(1)
    call, inputs = network.piece("exit 1", images[:1])
    torch.testing.assert_close(call(*inputs), network.multi_exit(images[:1])[1])


def test_what_is_extracted_is_apart_from_the_rest(network: SearchableExits, images: Tensor) -> None:
    own = network.extracted((0.6, 0.8))
    network.choose((0.6, 0.8))
    expected = network(images)
    network.choose((0.0, 0.0))
    nn.init.zeros_(network.multi_exit.heads[0].weight)  # type: ignore[union-attr, index]
    assert torch.equal(own(images), expected)


def test_networks_with_exits_can_be_searched_as_they_are(images: Tensor) -> None:
    exits = Exits()
    found = searchable(exits)
    assert isinstance(found, Searchable)
    assert isinstance(found, Observant)
    assert isinstance(found, Divisible)
    assert searchable(found) is found
    assert chosen(exits, {"exit0": 0.0, "exit1": 0.5}).eval()(images).shape == (40, 4)
    with pytest.raises(Mistake, match=r"exit0 is 0\.57, but this space has"):
        chosen(exits, {"exit0": 0.57, "exit1": 0.5})
    with pytest.raises(Mistake, match="Linear has nothing to choose"):
        searchable(nn.Linear(2, 2))
