"""Spans of attention on a grid of tokens: which keys a query may look at, and attention that computes no others.

A span of order 0 is the whole grid, one of order r >= 1 the (2r+1) x (2r+1) window around the query, cut off at the
borders. Masks are True where a key is blocked. A query all of whose keys are blocked looks at all tokens alike. Tokens
before the grid, such as the class token of a ViT, look at all tokens, and all look at them.

Reference: "TRAR: Routing the Attention Spans in Transformer for Visual Question Answering", ICCV 2021, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.compute import has_values
from models.mistakes import Mistake

# Height and width of a grid.
Size = tuple[int, int]

# A window is computed for so many rows and columns of queries at once: they share most of their keys.
TILE = 4


def span_mask(size: Size, order: int, device: torch.device | None = None) -> Tensor:
    """Which keys lie outside of a window, bool [N, N], row by query, tokens row by row of the grid.

    Args:
        size: Height and width of the grid, N = height * width.
        order: Cells that a query sees in each direction, at least 1.
        device: Where the mask is made.
    """
    rows, columns = (torch.arange(length, device=device) for length in size)
    far = [(axis[:, None] - axis).abs() > order for axis in (rows, columns)]
    return (far[0][:, None, :, None] | far[1][None, :, None, :]).flatten(2).flatten(0, 1)


def span_name(order: int) -> str:
    """What the span of an order is called."""
    return f"{2 * order + 1}x{2 * order + 1}" if order else "global"


@dataclass
class Spans:
    """The spans of a batch, as all layers of a network share them.

    Args:
        size: Height and width of the grid; None for tokens that have no places.
        padding: Which tokens are padding, bool [B, N]; None where none is.
        orders: Of the spans.
        windows: What each span blocks, bool [N, N]; None for the whole grid.
        prefix: Tokens before those of the grid; N counts them, too.
    """

    size: Size | None
    padding: Tensor | None
    orders: tuple[int, ...]
    windows: tuple[Tensor | None, ...]
    prefix: int = 0
    _blocked: list[Tensor | None] = field(default_factory=list, init=False, repr=False)

    @property
    def blocked(self) -> list[Tensor | None]:
        """What each span and the padding block: None, nothing; [B, 1, 1, N]; [N, N]; or [B, 1, N, N] for both."""
        # Once for all layers. A cached property has a lock, which no compiled graph holds.
        if not self._blocked:
            self._blocked = [_either(self.padding, window) for window in self.windows]
        return self._blocked

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None) -> Tensor:
        """Attention by one span, for some images of the batch.

        Args:
            index: Of the span.
            q, k, v: [b, heads, N, features of a head].
            padding: Which of their tokens are padding, bool [b, N]; None where none is.

        Returns:
            [b, heads, N, features].
        """
        if self._by_tiles(index):
            assert self.size is not None
            return attend_in_window(q, k, v, self.size, self.orders[index], padding, self.prefix)
        blocked = _either(padding, self.windows[index])
        if blocked is None:
            return F.scaled_dot_product_attention(q, k, v)
        return attention_maps(scores(q, k), blocked) @ v

    def products(self, index: int, tokens: int) -> int:
        """Products of a query and a key that `attend` takes for an image.

        Args:
            index: Of the span.
            tokens: Of an image, those before the grid included.
        """
        if not self._by_tiles(index):
            return tokens**2
        assert self.size is not None
        keys = (TILE + 2 * self.orders[index]) ** 2 + self.prefix
        return _rounded(self.size[0]) * _rounded(self.size[1]) * keys + self.prefix * tokens

    def _by_tiles(self, index: int) -> bool:
        """Whether a window has fewer keys around its tiles than the grid has."""
        order = self.orders[index]
        return order > 0 and self.size is not None and (TILE + 2 * order) ** 2 < self.size[0] * self.size[1]


class SpanMasks(nn.Module):
    """The masks of several spans, for grids of any size.

    They are buffers that are made when a size comes for the first time, and are no part of the state dict.

    Args:
        orders: Of the spans; they need neither be sorted nor begin with 0.
        prefix: Tokens before those of the grid.

    Raises:
        Mistake: No span, one twice, or a negative order.
    """

    def __init__(self, orders: Sequence[int], prefix: int = 0) -> None:
        super().__init__()
        if not orders or min(orders) < 0 or len(set(orders)) < len(orders):
            raise Mistake(f"orders of spans are different numbers from 0 on, at least one, not {list(orders)}")
        self.orders = tuple(orders)
        self.prefix = prefix

    def forward(self, size: Size | None, padding: Tensor | None, device: torch.device | None = None) -> Spans:
        """The spans of a batch.

        Args:
            size: Height and width of the grid; None for tokens without places, such as regions.
            padding: Which tokens are padding, bool [B, N]; None where none is.
            device: Where the masks are; that of the padding, if there is some.

        Raises:
            Mistake: A window that is wider than the grid, or a window and no grid.
        """
        if size is None and any(self.orders):
            raise Mistake(
                f"spans of orders {list(self.orders)} need features on a grid, [B, H, W, C]; regions, [B, N, C], have "
                "no neighbours: give orders: [0]"
            )
        if size is not None and max(self.orders) >= max(size):
            raise Mistake(
                f"a span of order {max(self.orders)} is wider than the grid of {size[0]}x{size[1]} cells: orders have "
                f"to be below {max(size)}, and 0 is the whole grid"
            )
        device = device if padding is None else padding.device
        windows = tuple(
            None if not order or size is None else self._window(size, order, device) for order in self.orders
        )
        return Spans(size, padding, self.orders, windows, self.prefix)

    def _window(self, size: Size, order: int, device: torch.device | None) -> Tensor:
        name = f"window_{size[0]}x{size[1]}_{order}"
        kept = self._buffers.get(name)
        if kept is not None:
            return kept
        # A mask made in inference mode could not serve a training later.
        with torch.inference_mode(False):
            made = F.pad(span_mask(size, order, device), (self.prefix, 0, self.prefix, 0))
        if has_values(made) and not torch.compiler.is_compiling():
            self.register_buffer(name, made, persistent=False)
        return made


def attention_maps(scores: Tensor, blocked: Tensor | None) -> Tensor:
    """Softmax over the keys that are not blocked, and over all alike where there are none.

    Args:
        scores: [..., queries, keys].
        blocked: Bool, of a shape that fits; None where no key is.
    """
    if blocked is None:
        return scores.softmax(-1)
    # The least number there is, and not minus infinity, of which a row would have no softmax.
    return scores.masked_fill(blocked, torch.finfo(scores.dtype).min).softmax(-1)


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Scaled products `q k^T / sqrt(features)` [..., queries, keys]."""
    return (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)


def attend_in_window(
    q: Tensor, k: Tensor, v: Tensor, size: Size, order: int, padding: Tensor | None = None, prefix: int = 0
) -> Tensor:
    """Attention of each query to the window around it, without the products that a mask would throw away.

    Queries are taken in tiles of 4x4, each with the (4 + 2r) x (4 + 2r) keys around it and those before the grid.

    Args:
        q, k, v: [B, heads, N, features of a head], tokens row by row of the grid.
        size: Height and width of the grid.
        order: Cells that a query sees in each direction, at least 1.
        padding: Which tokens are padding, bool [B, N]; None where none is.
        prefix: Tokens before those of the grid; N counts them, too.

    Returns:
        [B, heads, N, features], what attention to all keys makes with the mask of the window.
    """
    if padding is None:
        padding = torch.zeros(1, k.shape[2], dtype=torch.bool, device=k.device)
    height, width = (_rounded(length) for length in size)
    rest = (height - size[0], width - size[1])
    side = TILE + 2 * order

    def around_tiles(x: Tensor, fill: float) -> Tensor:
        """[B, ..., N, features] to [B, ..., tiles, keys, features], keys before the grid first."""
        grid = x[..., prefix:, :].unflatten(-2, size)
        grid = F.pad(grid, (0, 0, order, order + rest[1], order, order + rest[0]), value=fill)
        tiles = grid.unfold(-3, side, TILE).unfold(-3, side, TILE)
        tiles = tiles.flatten(-2).flatten(-4, -3).transpose(-1, -2)
        before = x[..., None, :prefix, :].expand(*tiles.shape[:-2], prefix, -1)
        return torch.cat([before, tiles], -2) if prefix else tiles

    queries = F.pad(q[:, :, prefix:].unflatten(2, size), (0, 0, 0, rest[1], 0, rest[0]))
    queries = queries.unfold(2, TILE, TILE).unfold(3, TILE, TILE).flatten(-2).flatten(2, 3).transpose(-1, -2)
    # Whether a key of the surroundings is in the window of a query of the tile is the same for all tiles.
    inside = torch.arange(TILE, device=q.device)[:, None] + order
    far = (torch.arange(side, device=q.device) - inside).abs() > order
    window = F.pad((far[:, None, :, None] | far[None, :, None, :]).flatten(2).flatten(0, 1), (prefix, 0))
    beyond = around_tiles(padding[:, None, :, None].to(q.dtype), 1.0).transpose(-1, -2) > 0
    blocked = window | beyond
    maps = attention_maps(scores(queries, around_tiles(k, 0.0)), blocked)
    # A query all of whose keys are blocked looks at all tokens, and not at its surroundings alone.
    lonely = blocked.all(-1, keepdim=True)
    mixed = torch.where(lonely, v.mean(2, keepdim=True)[:, :, None], maps @ around_tiles(v, 0.0))
    tiles = (height // TILE, width // TILE)
    grid = mixed.unflatten(3, (TILE, TILE)).unflatten(2, tiles).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    mixed = grid[:, :, : size[0], : size[1]].flatten(2, 3)
    if not prefix:
        return mixed
    before = attention_maps(scores(q[:, :, :prefix], k), padding[:, None, None]) @ v
    return torch.cat([before, mixed], 2)


def _either(padding: Tensor | None, window: Tensor | None) -> Tensor | None:
    """What padding [B, N] or a window [N, N] block."""
    if padding is None:
        return window
    return padding[:, None, None] if window is None else padding[:, None, None] | window


def _rounded(length: int) -> int:
    return -(-length // TILE) * TILE
