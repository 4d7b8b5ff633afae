"""CONTAINER-PAM ("pay attention to MLP") and MH-MLP: a vision transformer with a learned matrix in every attention.

Reference: "Container: Context Aggregation Network", NeurIPS 2021, arXiv 2106.01401, whose listing changes the attention
of DeiT (arXiv 2012.12877).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.mistakes import Mistake


class PAMAttention(nn.Module):
    """`concat_m((softmax(Q_m K_m^T / sqrt(C / M)) + A_m) V_m) W2 + b2`: a static affinity is added to the dynamic one.

    Args:
        dim: C.
        num_heads: M.
        tokens: N, the class token included.
        dynamic: Whether there is self-attention; without it, this is a token-mixing MLP of M heads.
        qkv_bias: Whether queries, keys and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int, tokens: int, dynamic: bool = True, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise Mistake(f"num_heads divides the channels, {dim}, which {num_heads} does not")
        self.num_heads = num_heads
        self.dynamic = dynamic
        # Values alone where nobody asks for queries and keys.
        self.qkv = nn.Linear(dim, 3 * dim if dynamic else dim, bias=qkv_bias)
        self.static_a = nn.Parameter(torch.empty(1, num_heads, tokens, tokens))
        self.proj = nn.Linear(dim, dim)
        trunc_normal_(self.static_a, std=0.02)
        for layer in (self.qkv, self.proj):
            trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, N, C] to the same shape; masks, which timm's blocks may hand on, are not taken."""
        assert attn_mask is None
        assert not is_causal
        *queries_keys, values = self.qkv(x).unflatten(2, (-1, self.num_heads, x.shape[2] // self.num_heads)).unbind(2)
        values = values.transpose(1, 2)
        mixed = torch.einsum("mij,bmjd->bmid", self.static_a[0], values)
        if self.dynamic:
            query, key = (each.transpose(1, 2) for each in queries_keys)
            mixed = mixed + F.scaled_dot_product_attention(query, key, values)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class ContainerPAM(VisionTransformer):
    """timm's vision transformer with `PAMAttention` in its blocks; images are of one size, `img_size`.

    Args:
        dynamic: See `PAMAttention`.
        options: Of `timm.models.vision_transformer.VisionTransformer`.
    """

    def __init__(self, dynamic: bool = True, **options: Any) -> None:
        # Images of other sizes get as far as where there is something to say of them.
        super().__init__(**{"dynamic_img_size": True, "dynamic_img_pad": True} | options)
        tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        for block in self.blocks.children():
            heads = block.get_submodule("attn").num_heads
            assert isinstance(heads, int)
            bias = options.get("qkv_bias", True)
            block.add_module("attn", PAMAttention(self.embed_dim, heads, tokens, dynamic, bias))

    def no_weight_decay(self) -> set[str]:
        """DeiT's: the class token and the positions. The static affinities are weights and decay."""
        return {"cls_token", "pos_embed"}

    def _pos_embed(self, x: Tensor) -> Tensor:
        rows, columns = self.patch_embed.grid_size
        if tuple(x.shape[1:3]) != (rows, columns):
            found = list(x.shape[1:3])
            size = [side * patch for side, patch in zip(found, self.patch_embed.patch_size, strict=True)]
            raise Mistake(
                f"a static MLP affinity is of {rows}x{columns} patches, not {found[0]}x{found[1]}: resize the images "
                f"to the img_size that the network was built for, or build it with img_size: {size}"
            )
        return super()._pos_embed(x)


_NAMES = ("container_pam", "container_mh_mlp")
default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for name in _NAMES
    }
)


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    sizes = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    feature_cfg = {"out_indices": options.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(ContainerPAM, name, pretrained, feature_cfg=feature_cfg, **sizes | options)


@register_model
def container_pam(pretrained: bool = False, **options: Any) -> nn.Module:
    """CONTAINER-PAM of the size of DeiT-S."""
    return _create("container_pam", pretrained, **options)


@register_model
def container_mh_mlp(pretrained: bool = False, **options: Any) -> nn.Module:
    """MH-MLP of the size of DeiT-S: static matrices alone."""
    return _create("container_mh_mlp", pretrained, **{"dynamic": False} | options)
