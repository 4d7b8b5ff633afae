"""Token merging: in each block, the tokens that are most alike become one; nothing is learned.

After attention the tokens of the map are dealt to two sets in turn. Each token of the first set finds the token of the
second whose keys, the mean over heads, are most alike (cosine), and the `r` best pairs are merged: to the mean of all
patches in them. A token of s patches counts s times as a key of later attention:

    A = softmax(Q K^T / sqrt(d) + log s)

Class tokens are never merged. Every image goes on with the same number of tokens.

Reference: "Token Merging: Your ViT But Faster", arXiv 2210.09461, sections 3.1 to 3.3.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from models.decisions import note
from models.layers.reduced_block import ReducedBlock, blocks_of
from models.mistakes import Mistake

SIZES = ("1 patch", "2 or 3 patches", "4 to 7 patches", "8 to 15 patches", "16 patches and more")


class Merged(NamedTuple):
    """What became of the patches.

    Args:
        sizes: Patches in each token [B, N], float32; those of extra tokens are 1. None where nothing is merged yet.
        token: In which token each patch is [B, P].
    """

    sizes: Tensor | None
    token: Tensor


def merge_targets(keys: Tensor, merges: int, extra: int) -> Tensor:
    """Which tokens become one (bipartite soft matching).

    Args:
        keys: What tokens are compared by [B, N, d].
        merges: How many pairs are merged, at most half of the tokens behind the extra ones.
        extra: Tokens in front that stay as they are.

    Returns:
        The place of each token among those that are left, in [0, N - merges) [B, N]. In front are the extra ones, then
        those of the first set that are left, then the second set.
    """
    batch, tokens = keys.shape[:2]
    # Tokens are counted with the extra ones: the even ones are the first set.
    first, second = extra + extra % 2, extra + 1 - extra % 2
    directions = F.normalize(keys.detach().float(), dim=2)
    likeness, partner = (directions[:, first::2] @ directions[:, second::2].transpose(1, 2)).max(2)
    rank = likeness.argsort(dim=1, descending=True, stable=True).argsort(1)
    goes = rank < merges
    left = likeness.shape[1] - merges
    places = torch.empty(batch, tokens, dtype=torch.long, device=keys.device)
    places[:, :extra] = torch.arange(extra, device=keys.device)
    places[:, first::2] = extra + torch.where(goes, left + partner, (~goes).cumsum(1) - 1)
    places[:, second::2] = torch.arange(extra + left, tokens - merges, device=keys.device)
    return places


class MergingBlock(ReducedBlock):
    """A transformer block that merges tokens between attention and MLP.

    Args:
        block: The host's.
        merges: Pairs of tokens that become one, r; at most half of the tokens of the map are.
        extra: Tokens in front that stay as they are.
        grid: Rows and columns of patches, for a map of what was merged.
    """

    def __init__(self, block: Block, merges: int, extra: int, grid: tuple[int, int]) -> None:
        super().__init__(block)
        self.merges, self.extra, self.grid = merges, extra, grid

    def forward(self, x: Tensor, merged: Merged | None = None) -> tuple[Tensor, Merged]:
        """Tokens [B, N, C], and what is in them, to tokens [B, N - r, C] and what is in these."""
        if merged is None:
            raise Mistake("blocks that merge tokens have no maps of features, and recompute no activations")
        sizes, token = merged
        x, keys = self.attended(x, None if sizes is None else sizes.log())
        if merges := min(self.merges, (x.shape[1] - self.extra) // 2):
            places = merge_targets(keys.mean(1), merges, self.extra)
            sizes = x.new_ones(x.shape[:2], dtype=torch.float32) if sizes is None else sizes
            x, sizes = _merge(x, sizes, places, merges)
            token = places.gather(1, token)
        if sizes is not None and token.shape[1] == self.grid[0] * self.grid[1]:
            patches = sizes.gather(1, token).unflatten(1, self.grid)
            note(self, "map", patches.log2().floor().long().clamp(max=len(SIZES) - 1), "size", SIZES)
        return self.fed(x), Merged(sizes, token)


class MergingBlocks(nn.Sequential):
    """Blocks that hand on what is in their tokens.

    Args:
        blocks: `MergingBlock`s.
        restores: Whether every patch ends with the features of the token that it is in, so that a map comes out.
    """

    def __init__(self, *blocks: MergingBlock, restores: bool = False) -> None:
        super().__init__(*blocks)
        self.restores = restores

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, extra + P, C] to the tokens that are left, or to as many as came."""
        first = self[0]
        assert isinstance(first, MergingBlock)
        extra = first.extra
        token = torch.arange(extra, x.shape[1], device=x.device).expand(x.shape[0], -1)
        merged = Merged(None, token)
        for block in self:
            x, merged = block(x, merged)
        if not self.restores or merged.sizes is None:
            return x
        own = merged.token[:, :, None].expand(-1, -1, x.shape[2])
        return torch.cat([x[:, :extra], x.gather(1, own)], 1)


def merge_tokens(network: nn.Module, merges: int | Sequence[int]) -> None:
    """Lets a vision transformer merge tokens, in place. Its weights, and their names, are the host's.

    Where a network ends with the mean of its tokens, each patch counts with the token that it is in.

    Args:
        network: timm's, with plain blocks.
        merges: Pairs of tokens that each block merges, or a number for each block.

    Raises:
        Mistake: Another network; a number below 0, or another number of numbers than of blocks.
    """
    blocks = list(blocks_of(network, "token merging"))
    numbers = [merges] * len(blocks) if isinstance(merges, int) else list(merges)
    if len(numbers) != len(blocks) or min(numbers) < 0:
        raise Mistake(f"merges is a number from 0 on, or one for each of the {len(blocks)} blocks, not {merges}")
    host: Any = network
    made = [
        MergingBlock(block, number, host.num_prefix_tokens, host.patch_embed.grid_size)
        for block, number in zip(blocks, numbers, strict=True)
    ]
    host.blocks = MergingBlocks(*made, restores=host.global_pool != "token")


def _merge(x: Tensor, sizes: Tensor, places: Tensor, merges: int) -> tuple[Tensor, Tensor]:
    """Means of the tokens [B, N, C] that share a place, by the patches in them, and the patches in these."""
    batch, tokens, dim = x.shape
    left = tokens - merges
    total = sizes.new_zeros(batch, left).scatter_add(1, places, sizes)
    weighed = x * sizes[:, :, None]
    sums = weighed.new_zeros(batch, left, dim).scatter_add(1, places[:, :, None].expand(-1, -1, dim), weighed)
    return (sums / total[:, :, None]).to(x.dtype), total
