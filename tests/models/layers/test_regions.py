"""What the host knows of regions without asking the device is what the device would say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.host_waits import HostWaits
from models.layers.regions import TILE, Layout, Region, pyramid


@pytest.fixture
def falloff() -> Tensor:
    weights = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
    return weights * (weights > 0.4)


def sparse(share: float) -> Tensor:
    """Masks [2, 72, 40] of blocks, whose coarsest maps are no multiple of a tile."""
    blocks = torch.rand(2, 1, 9, 5, generator=torch.Generator().manual_seed(1)) < share
    return F.interpolate(blocks.float(), scale_factor=8)[:, 0] > 0


@pytest.mark.parametrize("share", [0.0, 0.02, 0.15, 1.0])
def test_a_mask_is_waited_for_once(share: float, falloff: Tensor) -> None:
    mask = sparse(share)
    with HostWaits() as seen:
        pyramid(mask, 3, falloff)
    assert seen.total == 1, seen.seen


@pytest.mark.parametrize("share", [0.0, 0.02, 0.15, 1.0])
def test_indices_are_as_many_as_there_are(share: float, falloff: Tensor) -> None:
    regions: list[Region] = pyramid(sparse(share), 3, falloff)
    assert share not in (0.02, 0.15) or any(region.layout is not None and not region.layout.whole for region in regions)
    for region in regions:
        assert region.kept.equal(region.mask.flatten().nonzero().squeeze(1))
        # The neighbours of a filled pixel, of all pixels' neighbours.
        near = F.unfold(region.mask[:, None].float(), 7, padding=3) * (falloff > 0).float().flatten()[None, :, None]
        filled = torch.zeros(region.mask.numel() + 1, dtype=torch.bool)
        assert region.layout is not None
        pixel_of = torch.full((int(region.layout.rows.max()) + 1,), -1)
        held = (region.layout.rows >= 0).nonzero().squeeze(1)
        pixel_of[region.layout.rows[held]] = held
        filled[pixel_of[region.filled_rows]] = True
        reads = near.sum(1).flatten()[filled[:-1]]
        assert region.fill_taps.numel() == region.fill_reads.numel() == int(reads.sum())
        assert region.fill_starts.diff().equal(reads.long()[:-1])


@pytest.mark.parametrize(("stride", "kernel", "padding"), [(1, 1, 0), (1, 3, 1), (2, 3, 1)])
def test_pixels_beyond_the_border_are_counted(stride: int, kernel: int, padding: int) -> None:
    tiles = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 2]])
    layout = Layout(2, (12, 20), tiles, torch.device("cpu"))
    source = Layout(2, (12 * stride, 20 * stride), None, torch.device("cpu"))
    _, _, inside = layout.window(source, stride, kernel, padding)
    assert layout.tile == (TILE, TILE)
    assert layout.outside(source, stride, kernel, padding) == int((~inside).sum()) > 0
