"""Looks for what a query is about in a memory, and says where it looked."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distillation.instance_conditional.memory import Memory
from models.mistakes import Mistake


class Looked(NamedTuple):
    """What a layer found, and where.

    Args:
        features: [N, K, C].
        logits: [N, H, K, S], scaled products before the softmax, -inf on padding; single precision.
        values: [N, S, H, C / H].
    """

    features: Tensor
    logits: Tensor
    values: Tensor


class Attention(nn.Module):
    """Attention of several heads that shows its logits and values.

    Args:
        width: C.
        num_heads: H.
        project_position: A learned projection of positions before they are added to the keys.
        position_on_values: Add them to the values, too.
    """

    def __init__(
        self, width: int, num_heads: int, project_position: bool = True, position_on_values: bool = False
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise Mistake(f"{num_heads} heads do not divide {width} channels")
        self.num_heads, self.position_on_values = num_heads, position_on_values
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)
        self.position = nn.Linear(width, width) if project_position else nn.Identity()

    def forward(self, query: Tensor, memory: Memory) -> Looked:
        """Looks for queries [N, K, C]."""
        place = self.position(memory.position)
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        asked = self._heads(F.linear(query, weights[0], biases[0]))
        keys = self._heads(F.linear(memory.cells + place, weights[1], biases[1]))
        seen = memory.cells + place if self.position_on_values else memory.cells
        values = self._heads(F.linear(seen, weights[2], biases[2]))
        # A half-precision softmax over all cells of a pyramid would forget most of them.
        with torch.autocast(query.device.type, enabled=False):
            scale = math.sqrt(asked.shape[-1])
            logits = torch.einsum("nkhd,nshd->nhks", asked.float() / scale, keys.float())
            logits = logits.masked_fill(memory.padding[:, None, None], -math.inf)
            found = torch.einsum("nhks,nshd->nkhd", logits.softmax(-1), values.float())
        return Looked(self.out_proj(found.flatten(2).to(query.dtype)), logits, values)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1))


class DecoderLayer(nn.Module):
    """Attention and a feed-forward network of four times the width, a layer norm behind each.

    Args:
        width: C.
        num_heads: H.
        project_position: See `Attention`.
        position_on_values: See `Attention`.
    """

    def __init__(self, width: int, num_heads: int, project_position: bool, position_on_values: bool) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, project_position, position_on_values)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, query: Tensor, memory: Memory) -> Looked:
        """Looks for queries [N, K, C]."""
        looked = self.attention(query, memory)
        found = self.norm1(query + looked.features)
        return looked._replace(features=self.norm2(found + self.linear2(self.linear1(found).relu())))


class ConditionalDecoder(nn.Module):
    """Layers that look into the same memory, one after the other; the queries do not see each other.

    Args:
        width: C.
        num_heads: H.
        num_layers: 0 is bare attention.
        project_position: See `Attention`.
        position_on_values: See `Attention`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int = 8,
        num_layers: int = 1,
        project_position: bool = True,
        position_on_values: bool = False,
    ) -> None:
        super().__init__()
        options = num_heads, project_position, position_on_values
        layers: list[nn.Module] = [DecoderLayer(width, *options) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers or [Attention(width, *options)])

    def forward(self, query: Tensor, memory: Memory) -> list[Looked]:
        """What each layer found for queries [N, K, C]."""
        found: list[Looked] = []
        for layer in self.layers:
            found.append(layer(found[-1].features if found else query, memory))
        return found


class ValueProjections(nn.Module):
    """What a decoder's layers would see in another memory: of the student only its values are asked for.

    Args:
        width: C of the decoder.
        num_heads: H.
        num_layers: As many as the decoder has; at least one is made.
        project_position: See `Attention`; only where positions are on the values.
        position_on_values: See `Attention`.
        own: C of the other memory, the decoder's by default.
    """

    def __init__(
        self,
        width: int,
        num_heads: int = 8,
        num_layers: int = 1,
        project_position: bool = True,
        position_on_values: bool = False,
        own: int | None = None,
    ) -> None:
        super().__init__()
        own = width if own is None else own
        self.num_heads = num_heads
        self.layers = nn.ModuleList(nn.Linear(own, width) for _ in range(max(1, num_layers)))
        for layer in self.layers:
            # As rows of the decoder's joint projection are.
            bound = math.sqrt(6 / (3 * width + own))
            nn.init.uniform_(layer.weight, -bound, bound)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        projected = position_on_values and project_position
        self.positions = nn.ModuleList(nn.Linear(own, own) if projected else nn.Identity() for _ in self.layers)
        self.position_on_values = position_on_values

    def forward(self, memory: Memory) -> list[Tensor]:
        """Values of each layer, [N, S, H, C / H]."""
        values = []
        for layer, position in zip(self.layers, self.positions, strict=True):
            seen = memory.cells + position(memory.position) if self.position_on_values else memory.cells
            values.append(layer(seen).unflatten(-1, (self.num_heads, -1)))
        return values
