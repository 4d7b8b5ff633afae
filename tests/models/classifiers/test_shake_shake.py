"""Shake-shake: shares of branches, sizes, and what halves the resolution."""

from __future__ import annotations

import pytest
import torch

from models.classifiers import ShakeShake
from models.classifiers.shake_shake import ShakeBlock, ShiftedShortcut, shake
from models.compute import parameter_count
from models.mistakes import Mistake


def test_shares_are_of_each_sample_and_others_backwards() -> None:
    torch.manual_seed(0)
    first, second = torch.ones(64, 2, 3, 3, requires_grad=True), torch.zeros(64, 2, 3, 3, requires_grad=True)
    mixed = shake(first, second)
    mixed.sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    forwards, backwards = mixed[:, 0, 0, 0].detach(), first.grad[:, 0, 0, 0]
    for shares, values in ((forwards, mixed.detach()), (backwards, first.grad)):
        assert torch.equal(values, shares[:, None, None, None].expand_as(values))
        assert 0 <= shares.min() < 0.1 < 0.9 < shares.max() <= 1
    torch.testing.assert_close(first.grad + second.grad, torch.ones_like(mixed))
    assert abs(torch.corrcoef(torch.stack([forwards, backwards]))[0, 1]) < 0.4


def test_an_evaluation_takes_the_mean() -> None:
    torch.manual_seed(0)
    block = ShakeBlock(4, 4).eval()
    x = torch.randn(2, 4, 6, 6)
    first, second = (branch(x) for branch in block.branches)
    torch.testing.assert_close(block(x), x + first / 2 + second / 2)
    block.train()
    assert not torch.equal(block(x), block(x))


def test_shortcuts_sample_two_places() -> None:
    shortcut = ShiftedShortcut(1, 2).eval()
    torch.nn.init.ones_(shortcut.conv.weight)
    torch.nn.init.zeros_(shortcut.conv.bias)  # type: ignore[arg-type]
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    found = shortcut(x) * (1 + shortcut.norm.eps) ** 0.5
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    torch.testing.assert_close(found[0, 1], torch.tensor([[5.0, 7.0], [13.0, 15.0]]))


def test_the_published_network_has_its_size() -> None:
    """26.2 million parameters, of which the published code's second head has 3,850."""
    with torch.device("meta"):
        network = ShakeShake(two_heads=True)
    assert parameter_count(network) == 26_197_316
    assert len([name for name in network.state_dict() if name.endswith("conv1.weight")]) == 24


def test_heads_see_the_same_features() -> None:
    torch.manual_seed(0)
    network = ShakeShake(8, 4, 3, two_heads=True).eval()
    images = torch.randn(2, 3, 16, 16)
    first, second = network.both_heads(images)
    assert torch.equal(first, network(images))
    assert first.shape == second.shape == (2, 3)
    with pytest.raises(Mistake, match="two_heads: true"):
        ShakeShake(8, 4).both_heads(images)
    with pytest.raises(Mistake, match="6 n \\+ 2 layers"):
        ShakeShake(28)
