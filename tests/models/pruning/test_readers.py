"""ThiNet and regression on networks: channels that are read for nothing go first, and outputs are rebuilt."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.mistakes import Mistake
from models.pruning.groups import channel_groups
from models.pruning.planning import Choice, plan_by_share
from models.pruning.readers import METHODS, Method, Readers
from models.pruning.removal import remove
from tests.library.prunable_networks import family, images

BATCHES = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def output(layers: nn.Module) -> Tensor:
    with torch.no_grad():
        return layers[:3](torch.cat(BATCHES))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_hardly_read_goes_first(method: Method) -> None:
    """The first layer's filters 1 and 5 are as large as the others, but the second layer hardly looks at them."""
    dense = network()
    with torch.no_grad():
        dense[2].weight[:, [1, 5]] *= 1e-3
    groups, _ = channel_groups(dense, images())
    scores = Readers(dense, BATCHES, groups).score(method)(dense, groups[0])
    assert groups[0].name == "0"
    assert set(scores.argsort()[:2].tolist()) == {1, 5}
    assert sorted(scores.tolist()) == list(range(8))


@pytest.mark.parametrize(("method", "share"), [("thinet", 1.0), ("lasso", 0.8)])
def test_rebuilding_comes_closer_to_the_old_output(method: Method, share: float) -> None:
    """A scale for each channel helps a little, new weights help more."""
    dense = network()
    groups, _ = channel_groups(dense, images())
    readers = Readers(dense, BATCHES, groups)
    scores = {group.name: readers.score(method)(dense, group) for group in groups}
    # The second layer keeps all of its filters, so that its outputs can be compared.
    plan = plan_by_share(dense, groups, scores, 0.5, Choice(shares={"2": 0.0}), {})
    small = copy.deepcopy(dense)
    remove(small, plan)
    before = (output(small) - output(dense)).square().mean()
    readers.rebuild(small, plan, method)
    after = (output(small) - output(dense)).square().mean()
    assert after < share * before


def test_grouped_convolutions_are_refused() -> None:
    dense, groups, _ = family("bottleneck")
    grouped = next(group for group in groups if group.repeats > 1)
    with pytest.raises(Mistake, match="thinet does not know grouped convolutions"):
        Readers(dense, [images()], groups).score("thinet")(dense, grouped)
