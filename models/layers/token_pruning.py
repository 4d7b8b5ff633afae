"""Dynamic token sparsification: some blocks look at the tokens and keep those that matter for the rest of the network.

Before such a block a predictor says of each token how much it is worth keeping, from what is in it and from the mean of
the tokens that are still there:

    u = MLP(LN(x)),   pi = softmax(MLP([u's first half, mean of u's second half over kept tokens]))

Training draws with Gumbel noise which tokens are kept, of those that still are, and hides the others from attention, so
that gradients reach the predictors; nothing is saved. Evaluation keeps the best so many, the same number for each
image, and computes nothing of the others any more. Class tokens are always kept.

Reference: "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", arXiv 2106.02034, sections
3.2 and 3.3.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from models.compute import record
from models.decisions import note
from models.layers.gumbel import gumbel_noise, straight_through
from models.layers.reduced_block import ReducedBlock, blocks_of
from models.mistakes import Mistake


class Kept(NamedTuple):
    """Which patches are still there.

    Args:
        mask: In training, 1 or 0 for each patch, with a gradient [B, P]; None while all are there.
        patch: In evaluation, the patches that the tokens are, in order [B, P']; None while all are there.
        patches: How many there were at first, P.
    """

    mask: Tensor | None
    patch: Tensor | None
    patches: int


class TokenPredictor(nn.Module):
    """Scores of dropping and of keeping each token.

    Args:
        dim: Features of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.own = dim // 2
        self.inner = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.outer = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, N, C], and which of them are there [B, N], to scores [B, N, 2], float32 or finer."""
        local, common = self.inner(x).tensor_split([self.own], 2)
        if mask is None:
            mean = common.mean(1, keepdim=True)
        else:
            weights = mask.to(common.dtype)[:, :, None]
            mean = (common * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
        scores: Tensor = self.outer(torch.cat([local, mean.expand(-1, x.shape[1], -1)], 2))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    @property
    def macs(self) -> int:
        """Multiply-adds for a token."""
        return sum(layer.weight.numel() for layer in self.modules() if isinstance(layer, nn.Linear))


class PruningBlock(ReducedBlock):
    """A transformer block of tokens that were chosen, by itself or earlier.

    Records in `models.compute` what it computes for the tokens that it keeps, and what it will by plan.

    Args:
        block: The host's.
        before: Share of all patches that an evaluation has before this block.
        keep: Share that it has from here on; where it is another one, the block has a predictor and chooses.
        extra: Tokens in front that are always kept.
        grid: Rows and columns of patches, for a map of what was kept.
    """

    names: ClassVar = ("dropped", "kept")

    def __init__(self, block: Block, before: float, keep: float, extra: int, grid: tuple[int, int]) -> None:
        super().__init__(block)
        self.before, self.keep, self.extra, self.grid = before, keep, extra, grid
        self.predictor = TokenPredictor(self.dim) if keep != before else None

    def forward(self, x: Tensor, kept: Kept | None = None) -> tuple[Tensor, Kept]:
        """Tokens [B, N, C], and which patches they are, to tokens and which these are."""
        if kept is None:
            raise Mistake("blocks that drop tokens have no maps of features, and recompute no activations")
        asked: Any = x.shape[1] - self.extra
        if self.training and kept.mask is not None:
            asked = kept.mask.sum(1)
        if self.predictor is not None:
            scores = self.predictor(x[:, self.extra :], kept.mask)
            x, kept = self._drawn(x, kept, scores) if self.training else self._best(x, kept, scores)
        mask = kept.mask
        if mask is not None:
            visible = torch.cat([mask.new_ones(mask.shape[0], self.extra), mask], 1)
            tokens: Any = visible.sum(1)
            x, _ = self.attended(x, kept=visible)
        else:
            tokens = x.shape[1]
            x, _ = self.attended(x)
        self._record(x, asked, tokens, kept.patches)
        return self.fed(x), kept

    def _drawn(self, x: Tensor, kept: Kept, scores: Tensor) -> tuple[Tensor, Kept]:
        flat = scores.flatten(0, 1)
        choice, _ = straight_through(flat, gumbel_noise(torch.rand_like(flat)), 1.0)
        mask = choice[:, 1].view(scores.shape[:2])
        mask = mask if kept.mask is None else mask * kept.mask
        self._note(mask)
        return x, kept._replace(mask=mask)

    def _best(self, x: Tensor, kept: Kept, scores: Tensor) -> tuple[Tensor, Kept]:
        best = (scores[:, :, 1] - scores[:, :, 0]).topk(_number(self.keep, kept.patches), 1).indices.sort(1).values
        index = best if kept.patch is None else kept.patch.gather(1, best)
        self._note(scores.new_zeros(x.shape[0], kept.patches).scatter(1, index, 1.0))
        rows = x[:, self.extra :].gather(1, best[:, :, None].expand(-1, -1, x.shape[2]))
        return torch.cat([x[:, : self.extra], rows], 1), kept._replace(patch=index)

    def _note(self, mask: Tensor) -> None:
        if mask.shape[1] == self.grid[0] * self.grid[1]:
            note(self, "map", mask.long().unflatten(1, self.grid), "patch", self.names)

    def _record(self, x: Tensor, asked: Any, tokens: Any, patches: int) -> None:
        each = 0 if self.predictor is None else self.predictor.macs
        spent = self.macs(tokens) + each * asked
        expected = spent if isinstance(spent, Tensor) else x.new_full((x.shape[0],), spent, dtype=torch.float32)
        planned = self.macs(self.extra + _number(self.keep, patches)) + each * _number(self.before, patches)
        dense = self.macs(self.extra + patches) + each * patches
        record(self, expected, dense, self.macs(self.extra), planned)


class PruningBlocks(nn.Sequential):
    """Blocks, of which the first ones are the host's, that hand on which patches are still there."""

    def __init__(self, blocks: Sequence[nn.Module], extra: int) -> None:
        super().__init__(*blocks)
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, extra + P, C] to as many in training, and to those that are kept in evaluation."""
        kept = Kept(None, None, x.shape[1] - self.extra)
        for block in self:
            if isinstance(block, PruningBlock):
                x, kept = block(x, kept)
            else:
                x = block(x)
        return x


def prune_tokens(network: nn.Module, keep: float, places: Sequence[int] | None = None) -> None:
    """Lets a vision transformer drop tokens, in place. Its weights, and their names, are the host's.

    Args:
        network: timm's, with plain blocks and a class token that the classifier reads.
        keep: Share of its tokens that each choice leaves, in (0, 1).
        places: Which blocks choose; by default those after a quarter, a half and three quarters, as published.

    Raises:
        Mistake: Another network, a share out of its range, or places where there are no blocks.
    """
    blocks = list(blocks_of(network, "token pruning"))
    chosen = [len(blocks) * quarter // 4 for quarter in (1, 2, 3)] if places is None else list(places)
    if not 0 < keep < 1:
        raise Mistake(f"keep is a share of the tokens, between 0 and 1, not {keep}")
    if not chosen or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < len(blocks):
        raise Mistake(f"places are blocks from 0 to {len(blocks) - 1}, in order, not {chosen}")
    host: Any = network
    if host.global_pool != "token":
        raise Mistake(f"token pruning needs a class token for the classifier, not global_pool={host.global_pool!r}")
    made: list[nn.Module] = []
    for i, block in enumerate(blocks):
        before, after = (keep ** sum(place < end for place in chosen) for end in (i, i + 1))
        made.append(
            PruningBlock(block, before, after, host.num_prefix_tokens, host.patch_embed.grid_size)
            if i >= chosen[0]
            else block
        )
    host.blocks = PruningBlocks(made, host.num_prefix_tokens)
    # What a training from the host's weights starts without.
    host.fresh_parts = {"token predictors": r"blocks\.\d+\.predictor\..*"}


def _number(share: float, patches: int) -> int:
    """How many of so many patches a share is; rounded down, as published."""
    return max(1, int(share * patches))
