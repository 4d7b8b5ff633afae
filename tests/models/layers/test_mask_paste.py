import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers import mask_paste
from models.layers.mask_paste import paste


def sampled(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The same samples, taken at once by torch, in float64."""
    x0, y0, x1, y1 = boxes.double()[:, :, None].unbind(1)
    x = ((torch.arange(size[1]) + 0.5) - x0) / (x1 - x0) * 2 - 1
    y = ((torch.arange(size[0]) + 0.5) - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], -1)
    return F.grid_sample(maps[:, None].double(), grid, align_corners=False, padding_mode="zeros")[:, 0]


@given(
    side=st.integers(1, 9),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    binary=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=50)
def test_pasting_is_bilinear_sampling(side: int, height: int, width: int, binary: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    maps = torch.rand(4, side, side, generator=draw)
    maps = maps > 0.5 if binary else maps * 3 - 1
    corners = torch.rand(4, 2, generator=draw) * 40 - 20
    boxes = torch.cat([corners, corners + 0.1 + torch.rand(4, 2, generator=draw) * 40], 1)
    values = sampled(maps, boxes, (height, width))
    sure = (values - 0.5).abs() > 1e-4
    assert paste(maps, boxes, (height, width))[sure].equal(values[sure] >= 0.5)


def test_a_mask_of_the_size_of_its_box_is_copied() -> None:
    mask = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    pasted = paste(mask, torch.tensor([[3.0, 2, 9, 8]]), (10, 12))
    assert pasted[0, 2:8, 3:9].equal(mask[0])
    assert pasted.sum() == mask.sum()
    # A box that reaches beyond the image loses what is beyond.
    assert paste(mask, torch.tensor([[-2.0, -1, 4, 5]]), (3, 2))[0].equal(mask[0, 1:4, 2:4])


def test_a_box_without_area_holds_nothing() -> None:
    boxes = torch.tensor([[3.0, 3, 3, 8], [2.0, 4, 8, 4], [5.0, 5, 5, 5], [float("nan")] * 4])
    assert not paste(torch.ones(4, 5, 5), boxes, (10, 10)).any()
    assert paste(torch.ones(0, 5, 5), boxes[:0], (10, 10)).shape == (0, 10, 10)


def test_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.rand(7, 5, 5, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[1.0, 2, 9, 8]]) + torch.arange(7)[:, None]
    at_once = paste(maps, boxes, (12, 15))
    assert at_once.any()
    monkeypatch.setattr(mask_paste, "PIXELS_AT_A_TIME", 3 * 12 * 15)
    assert paste(maps, boxes, (12, 15)).equal(at_once)
