"""Dynamic Vision Transformer: a cascade of vision transformers that look at an image in more and more tokens.

Every stage is a complete transformer with an exit. A later stage reuses the last tokens of the stage before it in every
MLP (feature reuse, section 3.2) and the attention logits of all its blocks in every attention (relationship reuse,
section 3.3).

Reference: "Not All Images are Worth 16x16 Words: Dynamic Transformers for Efficient Image Recognition", arXiv
2105.15075. Hosts: DeiT (arXiv 2012.12877) and T2T-ViT (arXiv 2101.11986).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.anytime import iterate
from models.classifiers.dvt_blocks import Block, FeatureReuse, RelationReuse
from models.classifiers.tokens_to_token import TokensToTokens, sinusoid
from models.mistakes import Mistake

Host = Literal["deit", "t2t"]


class PatchTokens(nn.Module):
    """DeiT's tokeniser for any grid: one convolution over patches, which overlap nowhere.

    Where the grid does not divide the image, the patches are the smallest that cover it, and the image is padded.

    Args:
        image_size: Height and width of the images.
        grid: Tokens along each side.
        in_chans: Channels of the images.
        embed_dim: Channels of the tokens.

    Raises:
        Mistake: Some patches would hold nothing but padding; the message lists the grids that can be had.
    """

    def __init__(self, image_size: int, grid: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        if not _has_patches(image_size, grid):
            possible = [n for n in range(1, image_size + 1) if _has_patches(image_size, n)]
            raise Mistake(
                f"images of {image_size} pixels do not divide into {grid} patches a side; they do into "
                f"{', '.join(map(str, possible))}"
            )
        patch, padding = _patch(image_size, grid)
        self.proj = nn.Conv2d(in_chans, embed_dim, patch, patch, padding)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, image_size, image_size] to tokens [B, grid^2, embed_dim], row by row."""
        return self.proj(images).flatten(2).mT


class Stage(nn.Module):
    """One vision transformer of the cascade.

    Args:
        tokenizer: Images to tokens [B, grid^2, dim].
        pos_embed: Position encoding [1, 1 + grid^2, dim].
        blocks: Transformer blocks.
        relation_reuse: Makes what is added to the attention logits; None where nothing is.
        norm_eps: Epsilon of the last norm.
        num_classes: Logits.
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        pos_embed: nn.Parameter,
        blocks: Sequence[Block],
        relation_reuse: RelationReuse | None,
        norm_eps: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        dim = pos_embed.shape[-1]
        self.tokenizer = tokenizer
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = pos_embed
        self.relation_reuse = relation_reuse
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.head = nn.Linear(dim, num_classes)

    def forward(
        self,
        images: Tensor,
        tokens: Tensor | None = None,
        relations: Sequence[Tensor] | None = None,
        hand_on: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Run the stage.

        Args:
            images: [B, in_chans, H, W].
            tokens: Last tokens of the stage before [B, N', dim]; needed for feature reuse.
            relations: Attention logits [B, heads, N', N'] of its blocks; needed for relation reuse.
            hand_on: Whether this stage's attention logits are wanted.

        Returns:
            Logits [B, num_classes], last tokens before the norm [B, N, dim], and the attention logits [B, heads, N, N]
            of all blocks, none of them unless wanted.
        """
        reused: Sequence[Tensor | None] = [None] * len(self.blocks)
        if self.relation_reuse is not None:
            assert relations is not None
            reused = self.relation_reuse(relations)
        x = self.tokenizer(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        handed_on = []
        for block, relation in zip(self.blocks, reused, strict=True):
            x, relation = block(x, tokens, relation, hand_on)
            if relation is not None:
                handed_on.append(relation)
        return self.head(self.norm(x)[:, 0]), x, tuple(handed_on)


class DVT(nn.Module):
    """The cascade: as many vision transformers as there are grids, each with an exit.

    Args:
        host: `deit`: patch convolution, learned positions, biases on queries, keys and values; `t2t`: tokens-to-token,
            fixed sinusoids, no such biases.
        num_classes: How many classes there are, K.
        in_chans: Channels of the images.
        image_size: Height and width of the images.
        grids: Tokens along each side, one number a stage, ascending.
        embed_dim: Channels of the tokens in every stage.
        depth: Blocks of every stage.
        num_heads: Heads of every block.
        mlp_ratio: Channels inside the MLPs, divided by `embed_dim`.
        token_dim: Channels inside the tokens-to-token tokeniser; `deit` has none.
        feature_reuse: Whether a stage reads the last tokens of the one before.
        relation_reuse: Whether a stage reads the attention logits of the one before.
        reuse_dim: Channels that reused features add to the input of every MLP.
        reuse_hidden_dim: Channels inside the MLP that makes them.
        drop_path_rate: Stochastic depth of the last block of every stage; grows linearly from 0 at the first.

    Raises:
        Mistake: Sizes that do not fit together.
    """

    def __init__(
        self,
        host: Host = "deit",
        num_classes: int = 1000,
        in_chans: int = 3,
        image_size: int = 224,
        grids: Sequence[int] = (7, 10, 14),
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        token_dim: int = 64,
        feature_reuse: bool = True,
        relation_reuse: bool = True,
        reuse_dim: int = 48,
        reuse_hidden_dim: int = 128,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if host not in ("deit", "t2t"):
            raise Mistake(f"unknown host {host!r}: deit or t2t")
        sizes = {
            "num_classes": num_classes,
            "in_chans": in_chans,
            "image_size": image_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "reuse_dim": reuse_dim,
            "reuse_hidden_dim": reuse_hidden_dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise Mistake(f"{name} must be at least 1, not {size}")
        if int(embed_dim * mlp_ratio) < 1:
            raise Mistake(f"mlp_ratio={mlp_ratio} leaves no channel of embed_dim={embed_dim}")
        if embed_dim % num_heads:
            possible = ", ".join(str(heads) for heads in range(1, embed_dim + 1) if embed_dim % heads == 0)
            raise Mistake(f"{num_heads} heads do not divide embed_dim={embed_dim}; these do: {possible}")
        grids = tuple(grids)
        if not grids or any(n >= m for n, m in pairwise((0, *grids))):
            raise Mistake(f"grids must be ascending numbers of tokens a side, such as (7, 10, 14), not {grids}")
        if not 0.0 <= drop_path_rate < 1.0:
            raise Mistake(f"drop_path_rate must be in [0, 1), not {drop_path_rate}")

        self.num_classes = num_classes
        self.image_size = image_size
        self.grids = grids
        self.feature_reuse = feature_reuse
        self.relation_reuse = relation_reuse
        self.num_exits = len(grids)

        norm_eps = 1e-6 if host == "deit" else 1e-5
        drop_paths = np.linspace(0, drop_path_rate, depth).tolist()
        stages = []
        for previous, grid in pairwise((0, *grids)):
            reads_features, reads_relations = feature_reuse and previous > 0, relation_reuse and previous > 0
            tokenizer: nn.Module
            if host == "deit":
                tokenizer = PatchTokens(image_size, grid, in_chans, embed_dim)
                pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, embed_dim))
            else:
                tokenizer = TokensToTokens(image_size, grid, in_chans, embed_dim, token_dim)
                pos_embed = nn.Parameter(sinusoid(1 + grid**2, embed_dim), requires_grad=False)
            blocks = [
                Block(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    host == "deit",
                    norm_eps,
                    drop_path,
                    FeatureReuse(embed_dim, reuse_hidden_dim, reuse_dim, previous, grid, norm_eps)
                    if reads_features
                    else None,
                    reuse_dim if reads_features else 0,
                )
                for drop_path in drop_paths
            ]
            reuse = RelationReuse(depth, num_heads, previous, grid) if reads_relations else None
            stages.append(Stage(tokenizer, pos_embed, blocks, reuse, norm_eps, num_classes))
        self.stages = nn.ModuleList(stages)
        self.apply(_init_weights)

    def start(self, images: Tensor) -> dict[str, Any]:
        """The state before the first exit, for images [B, in_chans, image_size, image_size].

        Raises:
            Mistake: Images of another size.
        """
        if images.shape[2:] != (self.image_size, self.image_size):
            raise Mistake(
                f"images are {images.shape[2]}x{images.shape[3]}, but this network takes "
                f"{self.image_size}x{self.image_size} (image_size)"
            )
        return {"images": images}

    def advance(self, exit: int, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Run the stage of one exit.

        Args:
            exit: 0 .. num_exits - 1, in order.
            state: What `start`, or the exit before, returned; rows may have left all its tensors.

        Returns:
            Logits [B, K], and what the next exit reads: `images`; `tokens` [B, N, embed_dim] where features are reused;
            `relations`, one [B, num_heads, N, N] a block, where relations are. Nothing after the last exit.
        """
        last = exit == self.num_exits - 1
        logits, tokens, relations = self.stages[exit](
            state["images"], state.get("tokens"), state.get("relations"), hand_on=self.relation_reuse and not last
        )
        if last:
            return logits, {}
        handed_on: dict[str, Any] = {"images": state["images"]}
        if self.feature_reuse:
            handed_on["tokens"] = tokens
        if self.relation_reuse:
            handed_on["relations"] = relations
        return logits, handed_on

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, in_chans, image_size, image_size] to the logits [B, K] of every exit, cheapest first."""
        return list(iterate(self, images))

    def get_classifier(self) -> nn.Module:
        """The last linear layers of all exits."""
        return nn.ModuleList([stage.get_submodule("head") for stage in self.stages])


def _patch(image_size: int, grid: int) -> tuple[int, int]:
    patch = math.ceil(image_size / grid)
    return patch, math.ceil((patch * grid - image_size) / 2)


def _has_patches(image_size: int, grid: int) -> bool:
    patch, padding = _patch(image_size, grid)
    return padding < patch and (image_size + 2 * padding) // patch == grid


def _init_weights(module: nn.Module) -> None:
    # Convolutions, those of the relations included, keep PyTorch's initialisation.
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Stage):
        trunc_normal_(module.cls_token, std=0.02)
        if module.pos_embed.requires_grad:
            trunc_normal_(module.pos_embed, std=0.02)


PUBLISHED: dict[str, dict[str, Any]] = {
    "deit_small": {"host": "deit", "embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0},
    "t2t_vit_12": {"host": "t2t", "embed_dim": 256, "depth": 12, "num_heads": 4, "mlp_ratio": 2.0},
    "t2t_vit_14": {"host": "t2t", "embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0},
}
"""Arguments of the published cascades, on top of the defaults."""
