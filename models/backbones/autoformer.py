"""AutoFormer's networks: vision transformers with heads and MLPs of their own in each layer, and relative positions.

    logits_ij = (q_i k_j + q_i rK_ij) / sqrt(head_dim)        y_i = sum_j a_ij (v_j + rV_ij)

`rK` and `rV` are embeddings of how far token j lies from token i on the map (`models.layers.relative_position`), which
all heads of a layer share. The architectures that the paper has found are registered with timm; `num_heads` and
`mlp_ratios` make any other. Images may have any size: absolute positions are resized, distances are clipped.

Reference: "AutoFormer: Searching Transformers for Visual Recognition", ICCV 2021, arXiv 2107.00651; microsoft/Cream
4a13c4091e78. The super networks that they are searched in are in `models.supernet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models import build_model_with_cfg, checkpoint, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.backbones.registration import imagenet_cfgs
from models.layers.relative_position import RelativePosition2d, distances
from models.mistakes import Mistake

# Rows of the tables for all pairs of tokens; None without relative positions.
Pairs = tuple[Tensor, Tensor] | None
Norm = partial(nn.LayerNorm, eps=1e-5)


class RelativeAttention(nn.Module):
    """Self-attention with embeddings of relative positions for keys and values.

    How many heads there are is told by what `qkv` gives.

    Args:
        dim: Features of a token.
        num_heads: Heads.
        head_dim: Features of a head; need not be dim / num_heads.
        qkv_bias: Whether queries, keys and values have a bias.
        largest: Largest distance that relative positions tell from others; None for no such positions.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, qkv_bias: bool, largest: int | None) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=qkv_bias)
        self.proj = nn.Linear(num_heads * head_dim, dim)
        if largest is not None:
            self.rel_pos_embed_k = RelativePosition2d(head_dim, largest)
            self.rel_pos_embed_v = RelativePosition2d(head_dim, largest)

    def forward(self, x: Tensor, pairs: Pairs) -> Tensor:
        """Tokens [B, N, C] to tokens [B, N, C]."""
        queries, keys, values = self.qkv(x).unflatten(2, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        logits = queries @ keys.transpose(2, 3)
        if pairs is not None:
            logits = logits + torch.einsum("bhid,ijd->bhij", queries, self.rel_pos_embed_k(*pairs))
        shares = (logits * self.head_dim**-0.5).softmax(3)
        y = shares @ values
        if pairs is not None:
            y = y + torch.einsum("bhij,ijd->bhid", shares, self.rel_pos_embed_v(*pairs))
        return self.proj(y.transpose(1, 2).flatten(2))


class RelativeBlock(nn.Module):
    """`x += Attention(LN(x))`, `x += MLP(LN(x))`.

    Args:
        dim, num_heads, head_dim, qkv_bias, largest: See `RelativeAttention`.
        hidden: Features inside the MLP.
        drop_path: Probability that a branch of a sample is dropped.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        head_dim: int = 64,
        qkv_bias: bool = True,
        largest: int | None = 14,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = Norm(dim)
        self.attn = RelativeAttention(dim, num_heads, head_dim, qkv_bias, largest)
        self.norm2 = Norm(dim)
        self.mlp = Mlp(dim, hidden)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, pairs: Pairs) -> Tensor:
        """Tokens [B, N, C] to tokens [B, N, C]."""
        x = x + self.drop_path(self.attn(self.norm1(x), pairs))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def hidden_width(embed_dim: int, ratio: float) -> int:
    """Features inside an MLP; rounded down, as published."""
    return int(embed_dim * ratio)


class AutoFormer(VisionTransformer):
    """timm's vision transformer with sizes of their own in each layer, and relative positions.

    Args:
        embed_dim: Features of a token.
        num_heads: Heads of each layer; as many as there are layers.
        mlp_ratios: For each layer, features inside its MLP over `embed_dim`.
        head_dim: Features of a head.
        qkv_bias: Whether queries, keys and values have a bias.
        relative_position: Whether keys and values have embeddings of relative positions.
        max_relative_position: Largest distance, in patches, that these tell from others.
        drop_path_rate: Stochastic depth of the last layer; grows linearly from 0 at the first.
        options: Further ones of `VisionTransformer`.

    Raises:
        Mistake: Lists of different lengths.
    """

    def __init__(
        self,
        embed_dim: int = 192,
        num_heads: Sequence[int] = (3,) * 12,
        mlp_ratios: Sequence[float] = (4.0,) * 12,
        head_dim: int = 64,
        qkv_bias: bool = True,
        relative_position: bool = True,
        max_relative_position: int = 14,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        if len(num_heads) != len(mlp_ratios):
            raise Mistake(
                f"num_heads has {len(num_heads)} layers, mlp_ratios has {len(mlp_ratios)}: give both for each"
            )
        self.largest = max_relative_position if relative_position else None
        layers = zip(num_heads, mlp_ratios, strict=True)

        def block(drop_path: float, **_: Any) -> nn.Module:
            heads, ratio = next(layers)
            hidden = hidden_width(embed_dim, ratio)
            return RelativeBlock(embed_dim, heads, hidden, head_dim, qkv_bias, self.largest, drop_path)

        published: dict[str, Any] = {
            "global_pool": "avg",
            # The last norm comes before the mean of the tokens.
            "fc_norm": False,
            "norm_layer": Norm,
            "dynamic_img_size": True,
            "dynamic_img_pad": True,
        }
        super().__init__(
            embed_dim=embed_dim,
            depth=len(num_heads),
            drop_path_rate=drop_path_rate,
            block_fn=block,  # type: ignore[arg-type]
            **published | options,
        )
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Absolute positions and the class token, as published; tables of relative positions decay."""
        return {"pos_embed", "cls_token"} & dict(self.named_parameters()).keys()

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images [B, 3, H, W] to tokens [B, 1 + N, C] after the last norm; there are no masks."""
        return self.norm(self.tokens(x, self.blocks)[0])

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **_: Any,
    ) -> Any:
        """Images [B, 3, H, W] to what blocks give: maps [B, C, h, w], or tokens without the class token for `NLC`.

        Args:
            x: Images.
            indices: Blocks, as timm counts them.
            return_prefix_tokens: Whether each comes with its class token.
            norm: Whether they pass the last norm.
            stop_early: Whether later blocks are left out.
            output_fmt: `NCHW` or `NLC`.
            intermediates_only: Whether they come without the final tokens.
        """
        taken, last = feature_take_indices(len(self.blocks), indices)
        tokens, kept = self.tokens(x, self.blocks[: last + 1] if stop_early else self.blocks, taken)
        kept = [self.norm(each) if norm else each for each in kept]
        extra = [each[:, : self.num_prefix_tokens] for each in kept]
        maps = [each[:, self.num_prefix_tokens :] for each in kept]
        if output_fmt == "NCHW":
            size = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
            maps = [each.transpose(1, 2).unflatten(2, size).contiguous() for each in maps]
        results: list[Any] = list(zip(maps, extra, strict=True)) if return_prefix_tokens else list(maps)
        return results if intermediates_only else (self.norm(tokens), results)

    def tokens(
        self, images: Tensor, blocks: Iterable[nn.Module], taken: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Images [B, 3, H, W] through blocks: the tokens [B, 1 + N, C] of the last, and those of the taken ones."""
        x, pairs = self.embedded(images)
        kept = []
        for i, block in enumerate(blocks):
            x = checkpoint(block, x, pairs) if self.grad_checkpointing else block(x, pairs)
            if i in taken:
                kept.append(x)
        return x, kept

    def embedded(self, images: Tensor) -> tuple[Tensor, Pairs]:
        """What the first block takes of images [B, 3, H, W]: tokens [B, 1 + N, C], and the rows for all pairs."""
        maps = self.patch_embed(images)
        size = (maps.shape[1], maps.shape[2])
        pairs = None if self.largest is None else distances(size, self.num_prefix_tokens, self.largest, maps.device)
        return self._pos_embed(maps), pairs


# What the paper has found in its three spaces: features, heads of each layer, ratio of each layer's MLP.
SEARCHED: dict[str, dict[str, Any]] = {
    "tiny": {
        "embed_dim": 192,
        "num_heads": (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3),
        "mlp_ratios": (3.5, 3.5, 3, 3.5, 3, 3, 4, 4, 3.5, 4, 3.5, 4, 3.5),
    },
    "small": {
        "embed_dim": 384,
        "num_heads": (6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7),
        "mlp_ratios": (3, 3.5, 3, 3.5, 4, 4, 4, 4, 4, 4, 4, 3.5, 4),
    },
    "base": {
        "embed_dim": 576,
        "num_heads": (9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
        "mlp_ratios": (3.5, 3.5, 4, 3.5, 4, 3.5, 3.5, 3, 4, 4, 3, 4, 3, 3.5),
    },
}

default_cfgs = imagenet_cfgs([f"autoformer_{size}_patch16_224" for size in SEARCHED], 224)


def _create(size: str, pretrained: bool, **options: Any) -> AutoFormer:
    return build_model_with_cfg(
        AutoFormer,
        f"autoformer_{size}_patch16_224",
        pretrained,
        feature_cfg={"out_indices": options.pop("out_indices", 3), "feature_cls": "getter"},
        **SEARCHED[size] | options,
    )


@register_model
def autoformer_tiny_patch16_224(pretrained: bool = False, **options: Any) -> AutoFormer:
    """AutoFormer-T: 5.9 million parameters."""
    return _create("tiny", pretrained, **options)


@register_model
def autoformer_small_patch16_224(pretrained: bool = False, **options: Any) -> AutoFormer:
    """AutoFormer-S: 22.9 million parameters."""
    return _create("small", pretrained, **options)


@register_model
def autoformer_base_patch16_224(pretrained: bool = False, **options: Any) -> AutoFormer:
    """AutoFormer-B: 53.7 million parameters."""
    return _create("base", pretrained, **options)
