"""What dynamic layers say of their decisions, against what they do."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from models.anytime import iterate
from models.classifiers.drnet import DRNet
from models.compute import count, executed
from models.decisions import forget, note, noted
from models.layers.cond_conv import CondConv2d
from models.layers.dr_conv import DRConv2d
from models.layers.dynamic_conv import DynamicConv2d
from models.segmenters import ADPC, DynamicRouting


class Chooser(nn.Module):
    """Doubles a sample or leaves it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(1)
        note(self, "mixture", scores, "factor", ["one", "two"])
        return x * (scores @ scores.new_tensor([1.0, 2.0]))[:, None]


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), Chooser(), nn.Linear(4, 2))


def test_the_last_forward_is_noted_until_it_is_forgotten(network: nn.Sequential) -> None:
    assert noted(network) == {}
    for batch in (5, 3):
        images = torch.randn(batch, 3)
        network(images)
        decisions = noted(network)
        assert list(decisions) == ["1"]
        gates = network[1].get_submodule("gate")(network[0](images)).softmax(1)
        torch.testing.assert_close(decisions["1"].values, gates)
        assert not decisions["1"].values.requires_grad
    assert list(noted(network[1])) == [""]
    forget(network)
    assert noted(network) == {}


def test_notes_are_in_nobodys_way(network: nn.Sequential) -> None:
    parameters = network.state_dict().keys()
    network(torch.randn(2, 3)).sum().backward()
    assert network.state_dict().keys() == parameters
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(noted(twin)["1"].values, noted(network)["1"].values)
        assert noted(twin)["1"].names == ("one", "two")


def test_neither_compiled_graphs_nor_tensors_without_data_are_noted(network: nn.Sequential) -> None:
    images = torch.randn(2, 3)
    compiled = torch.compile(network, backend="eager", fullgraph=True)(images)
    assert noted(network) == {}
    torch.testing.assert_close(compiled, network(images))
    before = noted(network)["1"]
    count(network, (3,))
    copy.deepcopy(network).to("meta")(images.to("meta"))
    assert noted(network)["1"] is before


@pytest.mark.parametrize("make", [CondConv2d, DynamicConv2d])
def test_a_mixture_is_that_of_the_kernels(make: type[CondConv2d] | type[DynamicConv2d]) -> None:
    layer = make(3, 4, 1)
    images = torch.randn(2, 3, 5, 5)
    y = layer(images)
    decision = noted(layer)[""]
    assert (decision.kind, decision.option) == ("mixture", "kernel")
    assert decision.names == ("kernel 0", "kernel 1", "kernel 2", "kernel 3")
    kernels = torch.einsum("bn,noi->boi", decision.values, layer.weight.detach().view(4, 4, 3))
    torch.testing.assert_close(y.detach(), torch.einsum("boi,bihw->bohw", kernels, images))


def test_a_map_is_that_of_the_guide() -> None:
    layer = DRConv2d(3, 4, 1, num_regions=3)
    images = torch.randn(2, 3, 5, 6)
    layer(images)
    decision = noted(layer)[""]
    assert (decision.kind, decision.option) == ("map", "region")
    assert decision.names == ("region 0", "region 1", "region 2")
    assert layer.guide is not None
    assert torch.equal(decision.values, layer.guide(images).argmax(1))


def host() -> nn.Module:
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    network = nn.Sequential(convolution, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    network.num_classes = 2  # type: ignore[assignment]
    return network


def test_a_choice_is_that_of_the_predictor_with_its_costs() -> None:
    torch.manual_seed(0)
    predictor = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2, bias=False))
    network = DRNet(host(), predictor, candidates=[(16, 8), (8, 4)], predictor_size=8).eval()
    images = torch.randn(6, 3, 16, 8)
    network(images)
    decision = noted(network)[""]
    assert (decision.kind, decision.option) == ("choice", "resolution")
    assert decision.names == ("16 x 8 pixels", "8 x 4 pixels")
    pixels, classes = 16 * 8 * 3 * 9 * 4, 4 * 2
    assert decision.costs == (1.0, (pixels / 4 + classes) / (pixels + classes))
    assert decision.values.unique().tolist() == [0, 1]
    expected = sum(decision.costs[choice] for choice in decision.values.tolist()) / 6 * (pixels + classes)
    assert executed(network, images).macs - executed(predictor, images).macs == pytest.approx(expected)


def test_a_network_that_chooses_nothing_says_nothing() -> None:
    network = DRNet(host(), candidates=[16, 8], predictor_size=32, phase="pretrain")
    network(torch.randn(2, 3, 16, 16))
    assert noted(network) == {}


@pytest.mark.parametrize("route", ["dynamic", "unet"])
def test_a_route_is_the_ways_that_are_open(route: str) -> None:
    torch.manual_seed(1)
    network = DynamicRouting(3, 4, 4, route=route).eval()
    with torch.no_grad():
        for _, _, cell in network.cells():
            if cell.gate is not None:
                nn.init.normal_(cell.gate.score.bias, std=1.0)  # type: ignore[arg-type]
        images = torch.randn(3, 3, 60, 70)
        network(images)
    decision = noted(network)[""]
    grid = decision.grid
    assert grid is not None
    assert (decision.kind, decision.option, decision.names) == ("route", "way", ("keep", "up", "down"))
    assert (grid.steps, grid.fixed, grid.image_size) == ((0, -1, 1), route == "unet", (64, 96))
    assert grid.levels == ("stride 4", "stride 8", "stride 16", "stride 32")
    assert decision.values.shape == (3, *grid.exists.shape) == (3, 5, 4, 3)
    opened = decision.values > 0
    assert not (opened & ~grid.exists).any()
    assert torch.equal(opened.all(0), grid.exists) == grid.fixed
    # Nothing is sent from where nothing has arrived, so what is open is a route.
    macs = network.route_macs(decision.values, grid.image_size)
    padded = torch.nn.functional.pad(images, (0, 26, 0, 4))
    assert macs.tolist() == [executed(network, image[None]).macs for image in padded]


def test_the_common_route_makes_a_network() -> None:
    network = DynamicRouting(3, 4, 4)
    usage = torch.zeros(5, 4, 3)
    usage[:, 0, 0] = 0.5
    usage[1, 0, 2] = usage[2:, 1, 0] = 0.4
    arguments = network.common_route(usage)
    assert arguments == {
        "route": [[layer, 0, "keep"] for layer in range(5)],
        "small_gate": False,
        "budget": "expected",
    }
    assert sum(1 for _ in DynamicRouting(3, 4, 4, **arguments).cells()) == 5
    with pytest.raises(ValueError, match="no path"):
        network.common_route(usage / 2)


def test_an_exit_is_computed_where_the_one_before_was_not_sure() -> None:
    torch.manual_seed(0)
    stages = [[1, [1], [8]], [1, [1, 1], [4, 8]], [1, [1, 1, 1], [4, 8, 16]], [1, [1, 1, 1, 1], [4, 8, 16, 32]]]
    network = ADPC(3, stages, pooled_dim=4, bn_momentum=1.0, init_std=None)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network.train()(images)
        network.eval()
        threshold = next(iterate(network, images)).softmax(1).amax(1).median().item()
        network.thresholds = (threshold, 1.0, 1.0)
        exits = iterate(network, images)
        first = next(exits)
        assert [decision.values.shape[1] for decision in noted(network).values()] == [1]
        list(exits)
    decision = noted(network)[""]
    assert (decision.kind, decision.option) == ("exit", "exit")
    assert decision.names == ("exit 0", "exit 1", "exit 2", "exit 3")
    assert decision.values.shape == (2, 4, 16, 16)
    assert decision.values[:, 0].all()
    unsure = first.softmax(1).amax(1) <= threshold
    assert 0 < unsure.float().mean() < 1
    assert torch.equal(decision.values[:, 1], unsure)
    # What is skipped stays skipped.
    assert not (decision.values[:, 1:] & ~decision.values[:, :-1]).any()
