"""Channels that a pruned layer still reads of a map that others read whole.

Reference: "Rethinking the Value of Network Pruning", arXiv 1810.05270: behind a norm on a map that shortcuts share, so
that the norm can be pruned and the shortcuts stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ChannelSelection(nn.Module):
    """Picks channels of a map, in their order.

    `indexes` [channels] is 1 for a channel that is picked and 0 for one that is not, and in the state of a network. How
    many are picked does not change, so that no shape depends on it.

    Args:
        channels: Channels of the map.
        kept: How many of them are picked: the first, until `select` or weights say which.
    """

    indexes: Tensor
    positions: Tensor

    def __init__(self, channels: int, kept: int | None = None) -> None:
        super().__init__()
        kept = channels if kept is None else kept
        self.register_buffer("indexes", (torch.arange(channels) < kept).float())
        self.register_buffer("positions", torch.arange(kept), persistent=False)

    def select(self, mask: Tensor) -> None:
        """Picks other channels.

        Args:
            mask: [channels], not 0 for those that are picked.

        Raises:
            ValueError: As many as before have to be.
        """
        positions = mask.flatten().nonzero().flatten()
        if len(mask) != len(self.indexes) or len(positions) != len(self.positions):
            raise ValueError(
                f"{len(positions)} of {len(mask)} channels are picked where there is room for "
                f"{len(self.positions)} of {len(self.indexes)}"
            )
        self.indexes.copy_(mask != 0)
        self.positions.copy_(positions)

    def keep(self, index: Tensor) -> None:
        """Picks fewer channels.

        Args:
            index: Which of those picked so far, ascending [count].
        """
        self.positions = self.positions[index]
        self.indexes = torch.zeros_like(self.indexes)
        self.indexes[self.positions] = 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to [B, kept, H, W]."""
        return x if len(self.positions) == len(self.indexes) else x.index_select(1, self.positions)

    def extra_repr(self) -> str:
        """How many of how many."""
        return f"{len(self.indexes)}, {len(self.positions)}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        mask = state_dict.get(f"{prefix}indexes")
        super()._load_from_state_dict(state_dict, prefix, *args)
        if mask is not None and mask.shape == self.indexes.shape:
            try:
                self.select(mask)
            except ValueError as error:
                messages: list[str] = args[-1]
                messages.append(f"{prefix}indexes: {error}")
