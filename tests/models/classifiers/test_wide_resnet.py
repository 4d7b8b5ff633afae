"""Wide ResNets: their published sizes, and the first norms that ports never use."""

from __future__ import annotations

import pytest
import torch

from models.classifiers import WideResNet
from models.compute import count
from models.mistakes import Mistake


@pytest.mark.parametrize(
    ("widen", "classes", "params", "gmacs"),
    [(2, 10, 1_467_610, 0.2144), (2, 100, 1_479_220, 0.2144), (8, 100, 23_401_012, 3.360)],
)
def test_sizes_are_those_published(widen: int, classes: int, params: int, gmacs: float) -> None:
    with torch.device("meta"):
        network = WideResNet(28, widen, classes).eval()
        assert sum(each.numel() for each in network.parameters()) == params
        assert count(network, (3, 32, 32)).macs / 1e9 == pytest.approx(gmacs, rel=1e-3)


def test_ports_have_dead_norms() -> None:
    torch.manual_seed(0)
    for dead in (True, False):
        network = WideResNet(10, 1, 3, base_width=4, dead_preact=dead)
        network(torch.randn(4, 3, 8, 8)).square().sum().backward()
        unused = {name for name, each in network.named_parameters() if each.grad is None}
        norms = {f"stages.{stage}.0.norm1.{kind}" for stage in (1, 2) for kind in ("weight", "bias")}
        assert unused == (norms if dead else set())


def test_without_classes_it_gives_features() -> None:
    network = WideResNet(10, 2, 0, base_width=4)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, network.num_features) == (2, 32)


@pytest.mark.parametrize("depth", [4, 18, 27])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(Mistake, match=f"such as 10, 16, 28 or 40, not {depth}"):
        WideResNet(depth)
