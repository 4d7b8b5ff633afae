import math

import pytest
import torch

from models.layers.mlp import MLP
from models.layers.position_encoding import LearnedPositionEncoding, sine_position_encoding


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_sines_of_the_place_in_the_image(offset: float) -> None:
    padding = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[1, 3:], padding[1, :, 2:] = True, True
    position = sine_position_encoding(padding, 4, offset, temperature=100.0)
    assert position.shape == (2, 8, 4, 5)
    for image, height, width in ((0, 4, 5), (1, 3, 2)):
        for i in range(height):
            for j in range(width):
                y = 2 * math.pi * (i + 1 + offset) / height
                x = 2 * math.pi * (j + 1 + offset) / width
                # Two pairs of features: wavelengths 1 and 100 ^ (2 / 4).
                expected = [f(v / t) for v in (y, x) for t in (1, 10) for f in (math.sin, math.cos)]
                torch.testing.assert_close(position[image, :, i, j], torch.tensor(expected), atol=1e-5, rtol=0)


def test_sines_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="even, not 3"):
        sine_position_encoding(torch.zeros(1, 2, 2, dtype=torch.bool), 3)


def test_learned_positions_have_a_size() -> None:
    encoding = LearnedPositionEncoding(2, size=6)
    position = encoding(torch.zeros(3, 4, 6))
    assert position.shape == (3, 4, 4, 6)
    assert torch.equal(position[2, :2, 1, 5], encoding.col_embed.weight[5])
    assert torch.equal(position[0, 2:, 3, 0], encoding.row_embed.weight[3])
    with pytest.raises(ValueError, match="6 x 6 cells, and the map has 2 x 7"):
        encoding(torch.zeros(1, 2, 7))


def test_published_positions_are_learned_for_fifty_cells() -> None:
    encoding = LearnedPositionEncoding(2)
    assert encoding(torch.zeros(1, 50, 50)).shape == (1, 4, 50, 50)
    with pytest.raises(ValueError, match="50 x 50 cells"):
        encoding(torch.zeros(1, 51, 1))


def test_mlp_is_linear_but_between_its_layers() -> None:
    torch.manual_seed(0)
    mlp = MLP(3, 5, 2, 2)
    assert [tuple(parameter.shape) for parameter in mlp.parameters()] == [(5, 3), (5,), (2, 5), (2,)]
    x = torch.randn(4, 3)
    first, second = mlp.layers
    torch.testing.assert_close(mlp(x), second(first(x).clamp(min=0)))
    assert mlp(x).min() < 0
    with pytest.raises(ValueError, match="num_layers=0"):
        MLP(3, 5, 2, 0)
