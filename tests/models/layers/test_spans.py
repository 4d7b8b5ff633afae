import pytest
import torch

from models.layers.spans import SpanMasks, attend_in_window, attention_maps, scores, span_mask, span_name


def grids(size: tuple[int, int], order: int) -> list[tuple[int, int]]:
    """Which cells each cell of a grid sees, written out."""
    cells = [(row, column) for row in range(size[0]) for column in range(size[1])]
    return [
        (i, j)
        for i, (r0, c0) in enumerate(cells)
        for j, (r, c) in enumerate(cells)
        if max(abs(r - r0), abs(c - c0)) <= order
    ]


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 6)])
@pytest.mark.parametrize("order", [1, 2])
def test_a_window_ends_at_the_borders(size: tuple[int, int], order: int) -> None:
    assert (~span_mask(size, order)).nonzero().tolist() == [list(pair) for pair in grids(size, order)]


def test_masks_are_made_once_and_are_no_state() -> None:
    masks = SpanMasks([2, 0])
    padding = torch.zeros(2, 15, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.inference_mode():
        first = masks((3, 5), padding)
    second = masks((3, 5), padding)
    assert second.windows[0] is first.windows[0]
    assert not second.windows[0].is_inference()
    assert second.windows[1] is None
    assert [blocked.shape for blocked in second.blocked] == [(2, 1, 15, 15), (2, 1, 1, 15)]
    assert torch.equal(second.blocked[0][1, 0], span_mask((3, 5), 2) | padding[1])
    masks((5, 3), padding)
    assert len(list(masks.buffers())) == 2
    assert not masks.state_dict()
    assert [buffer.device.type for buffer in masks.to("meta").buffers()] == ["meta"] * 2


def test_spans_that_cannot_be_are_refused() -> None:
    for orders in ([], [1, 1], [0, -1]):
        with pytest.raises(ValueError, match="orders of spans are different numbers from 0 on"):
            SpanMasks(orders)
    with pytest.raises(ValueError, match=r"order 4 is wider than the grid of 2x4 cells: orders have to be below 4"):
        SpanMasks([4])((2, 4), torch.zeros(1, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"orders \[0, 1\] need features on a grid"):
        SpanMasks([0, 1])(None, torch.zeros(1, 8, dtype=torch.bool))
    assert [span_name(order) for order in (0, 1, 3)] == ["global", "3x3", "7x7"]


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (4, 13)])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_tiles_are_the_masked_map(size: tuple[int, int], order: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = size[0] * size[1]
    q, k, v = (torch.randn(3, 2, tokens, 4, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    padding = torch.rand(3, tokens, generator=generator) < 0.3
    # Whole windows of padding, and an image that is nothing else.
    padding[1, 1:], padding[2] = True, True
    blocked = padding[:, None, None] | span_mask(size, order)
    assert blocked[1].all(-1).any()
    expected = attention_maps(scores(q, k), blocked) @ v
    torch.testing.assert_close(attend_in_window(q, k, v, size, order, padding), expected)
    torch.testing.assert_close(expected[2], v[2].mean(1, keepdim=True).expand_as(v[2]), atol=2e-3, rtol=2e-3)
