"""Criteria, selections, masks, sparsity, reconstruction and counting, as plain functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.mistakes import Mistake
from models.pruning import criteria
from models.pruning.counting import published_flops, scratch_b_epochs
from models.pruning.masks import (
    apply_masks,
    conv_weights,
    kernel_positions,
    mask_gradients,
    redraw,
    rewound,
    sparse_std,
)
from models.pruning.reconstruction import lasso_channels, least_squares_weight, thinet_channels, thinet_scales
from models.pruning.selection import (
    keep_largest,
    kept_count,
    magnitude_masks,
    magnitude_threshold,
    slimming_mask,
    slimming_threshold,
    soft_filter_mask,
)
from models.pruning.sparsity import add_sparsity_gradient, proximal_step


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_norms_of_filters() -> None:
    weight = torch.tensor([[[[3.0]], [[-4.0]]], [[[1.0]], [[0.0]]]])
    assert criteria.l1_norm(weight).tolist() == [7, 1]
    assert criteria.l2_norm(weight).tolist() == [5, 1]
    assert criteria.batch_norm_scale(torch.tensor([-2.0, 1.0])).tolist() == [2, 1]
    assert criteria.taylor(weight, torch.ones_like(weight)).tolist() == [1, 1]
    one, other = (criteria.random(weight, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("width", "ratio", "kept"), [(64, 0.1, 57), (32, 0.3, 22), (64, 0.3, 44), (16, 0.6, 6)])
def test_kept_count_is_that_of_doubles(width: int, ratio: float, kept: int) -> None:
    assert kept_count(width, ratio) == kept


def test_the_largest_keep_their_order() -> None:
    assert keep_largest(torch.tensor([1.0, 5.0, 3.0, 5.0, 4.0]), 3).tolist() == [1, 3, 4]
    assert keep_largest(torch.ones(4), 2).tolist() == [0, 1]


def test_what_equals_the_threshold_goes() -> None:
    gammas = [torch.tensor([0.5, -0.1]), torch.tensor([0.2, 0.1, 0.4])]
    threshold = slimming_threshold(gammas, 0.4)
    assert threshold == pytest.approx(0.2)
    assert [slimming_mask(gamma, threshold).tolist() for gamma in gammas] == [[True, False], [False, False, True]]


def test_a_layer_keeps_its_minimum() -> None:
    gamma = torch.tensor([0.1, -0.3, 0.2])
    assert not slimming_mask(gamma, torch.tensor(1.0)).any()
    assert slimming_mask(gamma, torch.tensor(1.0), minimum=2).tolist() == [False, True, True]


def test_a_share_of_survivors() -> None:
    weights = {"a": torch.tensor([0.0, 0.0, 1.0, 2.0]), "b": torch.tensor([3.0, -4.0])}
    assert magnitude_threshold(weights, 0.5) == 2
    assert magnitude_threshold(weights, 0.5, of_survivors=True) == 3
    assert magnitude_masks(weights, 0.5, of_survivors=True)[0]["b"].tolist() == [False, True]
    with pytest.raises(Mistake, match="share of 1 cannot be pruned"):
        magnitude_threshold(weights, 1.0)


def test_soft_filters_are_the_smallest() -> None:
    assert soft_filter_mask(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5).tolist() == [True, False, False, True]


def test_masks_outlast_a_step_and_a_rewinding() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3))
    start = {name: value.clone() for name, value in network.state_dict().items()}
    masks, _ = magnitude_masks(conv_weights(network), 0.75)
    assert masks.keys() == {"0.weight", "2.weight"}
    apply_masks(network, masks)
    network(draw(2, 2, 7, 7)).square().sum().backward()
    mask_gradients(network, masks)
    torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1).step()
    assert all(torch.equal(network.get_parameter(name) != 0, mask) for name, mask in masks.items())
    ticket = rewound(start, masks)
    assert torch.equal(ticket["0.weight"], start["0.weight"] * masks["0.weight"])
    assert torch.equal(ticket["0.bias"], start["0.bias"])
    redraw(network, masks, torch.Generator().manual_seed(0))
    assert torch.equal(network.get_parameter("2.weight") != 0, masks["2.weight"])


def test_sparse_std_and_positions() -> None:
    mask = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    mask[:, :, 1, 1] = True
    assert sparse_std(mask) == pytest.approx(math.sqrt(2 / 4))
    assert sparse_std(torch.zeros_like(mask)) == math.inf
    assert kernel_positions({"a": mask, "b": torch.ones(2, 2, 1, 1)}).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_sparsity_gradient_is_that_of_the_penalty() -> None:
    gamma = nn.Parameter(draw(5))
    gamma.square().sum().backward()
    add_sparsity_gradient([gamma], 0.3)
    expected = torch.autograd.grad(gamma.square().sum() + 0.3 * gamma.abs().sum(), gamma)[0]
    torch.testing.assert_close(gamma.grad, expected)


def test_proximal_steps_reach_the_minimum() -> None:
    """Of (x - a)^2 / 2 + p |x|, which is a shrunk by p."""
    target, penalty = torch.tensor([2.0, 0.3, -1.5]), 0.5
    scale, velocity = torch.ones(3), torch.zeros(3)
    for _ in range(200):
        proximal_step(scale, velocity, scale - target, 0.1, 0.5, penalty)
    torch.testing.assert_close(scale, torch.tensor([1.5, 0.0, -1.0]))
    assert scale[1] == 0


def test_thinet_removes_what_cancels() -> None:
    """Once a channel has gone, its opposite goes before any other."""
    x = draw(200, 4)
    x[:, 3] = -x[:, 1]
    x[:, ::2] *= 1.5
    assert thinet_channels(x, 2).tolist() == [0, 2]
    cost = {c: x[:, c].square().sum() for c in range(4)}
    assert thinet_channels(x, 3).tolist() == sorted(set(range(4)) - {min(cost, key=lambda c: cost[c])})


def test_thinet_scales_make_up_for_a_twin() -> None:
    x = draw(200, 3)
    x[:, 2] = x[:, 0]
    torch.testing.assert_close(thinet_scales(x, torch.tensor([0, 1])), torch.tensor([2.0, 1.0]))


def test_lasso_keeps_what_rebuilds_the_output() -> None:
    x = draw(300, 8) * torch.tensor([1.0, 0.05, 2.0, 0.01, 1.5, 0.05, 0.02, 3.0])
    assert lasso_channels(x, 4).tolist() == [0, 2, 4, 7]
    assert len(lasso_channels(x, 8)) == 8


def test_least_squares_finds_the_map() -> None:
    inputs, weight = draw(50, 6), draw(4, 6, seed=1)
    torch.testing.assert_close(least_squares_weight(inputs, inputs @ weight.T), weight)


def test_published_counter_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )
    conv, pool, linear = (2 * 9 * 2 + 1) * 6 * 64, 4 * 6 * 16, 2 * 96 * 5 + 5
    expected = conv + 2 * 6 * 64 + 6 * 64 + pool + linear
    assert published_flops(network, draw(3, 4, 8, 8)) == expected
    with torch.no_grad():
        network[0].weight[0] = 0
    assert published_flops(network, draw(2, 4, 8, 8), non_zero=True) == expected - 2 * 18 * 64


def test_scratch_b() -> None:
    """VGG-16 and ResNet-56 on CIFAR, ThiNet's VGG on ImageNet, as the paper's code trains them."""
    assert scratch_b_epochs(160, 0.62788, 0.41336) == 243
    assert scratch_b_epochs(160, 0.25257, 0.18314) == 220
    assert scratch_b_epochs(90, 30.97376, 9.59939, cap=2) == 180
