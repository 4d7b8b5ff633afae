"""Compute as a gated network decides it: expected, dense and executed, by a toy that can be added up by hand."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn

from models.compute import (
    count,
    executed,
    expected,
    forget,
    has_values,
    record,
    recorded,
    static_macs,
)

WIDTH = 8


class Gated(nn.Module):
    """Adds a linear layer to the samples whose gate is open: half of their compute is optional."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(WIDTH, WIDTH)
        self.sometimes = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        cost = float(WIDTH**2)
        record(self, cost + gate * cost, 2 * cost, cost)
        x = self.always(x)
        if not has_values(x):
            return x + self.sometimes(x)
        chosen = gate.round().bool()
        added = torch.zeros_like(x).index_put((chosen,), self.sometimes(x[chosen]))
        return x + added * gate[:, None]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.gate = nn.Linear(WIDTH, 2)
        self.first, self.second = Gated(), Gated()
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).mean((2, 3))
        gates = self.gate(x).sigmoid()
        return self.head(self.second(self.first(x, gates[:, 0]), gates[:, 1]))


LINEAR = WIDTH**2
STATIC = 6 * 6 * WIDTH * 3 * 9 + WIDTH * 2 + WIDTH * 5


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    network = Network()
    # About half of the gates are open.
    nn.init.zeros_(network.stem.bias)
    nn.init.zeros_(network.gate.bias)
    return network


@pytest.fixture
def images() -> Tensor:
    return torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_dense_compute_takes_every_branch(network: Network) -> None:
    assert count(network, (3, 6, 6)).macs == STATIC + 4 * LINEAR
    assert static_macs(network, (3, 6, 6)) == STATIC
    with torch.device("meta"):
        unfilled = Network()
    assert static_macs(unfilled, (3, 6, 6)) == STATIC


def test_expected_compute_adds_up(network: Network, images: Tensor) -> None:
    network(images)
    gates = network.gate(network.stem(images).mean((2, 3))).sigmoid()
    compute = expected(network, STATIC)
    assert compute.dense_macs == STATIC + 4 * LINEAR
    assert compute.least_macs == STATIC + 2 * LINEAR
    torch.testing.assert_close(compute.macs, STATIC + LINEAR * (2 + gates.sum(1)))
    torch.testing.assert_close(compute.share, compute.macs / compute.dense_macs)
    assert list(compute.layers) == ["first", "second"]
    assert compute.layers["first"].dense == 2 * LINEAR
    torch.testing.assert_close(compute.layers["second"].expected, LINEAR * (1 + gates[:, 1]))


def test_gradient_reaches_the_decisions_of_each_sample(network: Network, images: Tensor) -> None:
    network(images)
    expected(network, STATIC).macs.mean().backward()
    gates = network.gate(network.stem(images).mean((2, 3))).sigmoid()
    slope = LINEAR * (gates * (1 - gates)).mean(0)
    torch.testing.assert_close(network.gate.bias.grad, slope)
    assert network.head.weight.grad is None


def test_executed_compute_is_what_the_open_gates_cost(network: Network, images: Tensor) -> None:
    ran = executed(network, images)
    opened = network.gate(network.stem(images).mean((2, 3))).sigmoid().round().sum().item()
    assert 0 < opened < 2 * len(images)
    assert ran.macs == pytest.approx(STATIC + 2 * LINEAR + LINEAR * opened / len(images))


def test_no_graph_outlives_its_step(network: Network, images: Tensor) -> None:
    network(images)
    first = weakref.ref(expected(network, STATIC).layers["first"].expected)
    network(images)
    gc.collect()
    assert first() is None
    second = weakref.ref(recorded(network)["second"].expected)
    forget(network)
    gc.collect()
    assert second() is None
    assert recorded(network) == {}


def test_counting_leaves_nothing_behind(network: Network) -> None:
    count(network, (3, 6, 6))
    assert recorded(network) == {}


def test_network_can_be_copied_after_it_ran(network: Network, images: Tensor) -> None:
    network(images)
    macs = expected(network, STATIC).macs
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(expected(twin, STATIC).macs, macs.detach())
        assert not expected(twin, STATIC).macs.requires_grad
    assert network.state_dict().keys() == Network().state_dict().keys()


def test_compiled_network_records(images: Tensor) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.layer = nn.Linear(3, 1), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean((2, 3))
            gate = self.gate(x).sigmoid()
            record(self.layer, gate[:, 0] * 9, 9.0)
            return self.layer(x) * gate

    torch.manual_seed(0)
    network = Scaled()
    network(images)
    eager = expected(network, 3.0).macs
    compiled = copy.deepcopy(network)
    compiled.compile(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        compiled.zero_grad()
        compiled(images)
        macs = expected(compiled, 3.0).macs
        torch.testing.assert_close(macs, eager)
        macs.mean().backward()
        assert compiled.gate.bias.grad.abs().item() > 0


def test_a_network_without_dynamic_layers_is_refused(images: Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    network(images)
    with pytest.raises(ValueError, match="no dynamic layer of Sequential"):
        expected(network, 0.0)
    with pytest.raises(ValueError, match="no dynamic layer of Sequential"):
        static_macs(network, (3, 6, 6))


def test_nested_layers_are_refused(network: Network, images: Tensor) -> None:
    network(images)
    record(network.first.sometimes, torch.ones(16), 1.0)
    with pytest.raises(ValueError, match=r"'first.sometimes' is inside of another one, 'first'"):
        expected(network, STATIC)
