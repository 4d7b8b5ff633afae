import pytest
import torch

from datamodules.grid_features import pooled_grid


@pytest.mark.parametrize(("halvings", "side"), [(0, 32), (1, 16), (2, 8)])
def test_a_map_stands_in_the_middle_of_the_canvas(halvings: int, side: int) -> None:
    features = torch.rand(2, 19, 24) + 1
    grid = pooled_grid(features, halvings)
    assert grid.shape == (side, side, 2)
    # Six rows above and seven below, four columns at each side.
    cell = 2**halvings
    rows = [row for row in range(side) if grid[row, side // 2].any()]
    columns = [column for column in range(side) if grid[side // 2, column].any()]
    assert rows == list(range(6 // cell, -(-25 // cell)))
    assert columns == list(range(4 // cell, 28 // cell))
    assert grid.amax((0, 1)).tolist() == features.amax((1, 2)).tolist()


def test_a_portrait_is_turned_and_what_is_too_large_cut_off() -> None:
    features = torch.rand(3, 14, 35)
    assert torch.equal(pooled_grid(features.mT), pooled_grid(features))
    assert torch.equal(pooled_grid(features), pooled_grid(features[:, :, :32]))
