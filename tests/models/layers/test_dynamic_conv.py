import math

import pytest
import torch

from models.layers.dynamic_conv import DynamicConv2d, KernelAttention


def test_the_temperature_is_in_the_checkpoint():
    layer = DynamicConv2d(6, 8, 3)
    layer.attention.temperature.fill_(4)
    resumed = DynamicConv2d(6, 8, 3)
    assert resumed.attention.temperature == 30
    resumed.load_state_dict(layer.state_dict())
    assert resumed.attention.temperature == 4
    x = torch.randn(3, 6, 5, 5)
    torch.testing.assert_close(resumed(x), layer(x))


def test_a_high_temperature_is_nearly_uniform_and_a_low_one_sharp():
    torch.manual_seed(0)
    attention, x = KernelAttention(6, 4), torch.randn(5, 6, 7, 7)
    entropies = []
    for temperature in (1e3, 1.0, 1e-3):
        attention.temperature.fill_(temperature)
        pi = attention(x)
        torch.testing.assert_close(pi.sum(1), torch.ones(5))
        entropies.append(-torch.xlogy(pi, pi).sum(1).mean().item())
    assert entropies[0] == pytest.approx(math.log(4), abs=1e-4)
    assert entropies[0] > entropies[1] > entropies[2]


@pytest.mark.parametrize(
    ("channels", "rule", "hidden"),
    [(3, "plus_one", 4), (16, "plus_one", 5), (1, "plus_one", 1), (16, "paper", 4), (2, "paper", 1)],
)
def test_hidden_width(channels, rule, hidden):
    assert KernelAttention(channels, 4, hidden_rule=rule).fc1.weight.shape == (hidden, channels)


def test_bad_options():
    with pytest.raises(ValueError, match="plus_one, paper"):
        KernelAttention(6, hidden_rule="quarter")
    with pytest.raises(ValueError, match="positive ratio"):
        KernelAttention(6, ratio=0)
    with pytest.raises(ValueError, match="temperature is positive"):
        DynamicConv2d(6, 8, 3, temperature=0)
