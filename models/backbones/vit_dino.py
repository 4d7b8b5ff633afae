"""Vision transformers as DINO trains them, for images of any size that their patches divide.

They are timm's, under the same names of parameters; positions of other grids are resized as DINO's code does it.
Reference: "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294, and its published code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


class DINOVisionTransformer(VisionTransformer):
    """timm's vision transformer with a class token and learned positions, which are resized to the grid of an image.

    Args:
        options: Of `timm.models.vision_transformer.VisionTransformer`; features are the class token after the last
            norm.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"dynamic_img_size": True, **options})

    def no_weight_decay(self) -> set[str]:
        """Nothing: the class token and the positions decay, as published."""
        return set()

    def _pos_embed(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        assert self.cls_token is not None
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), x.flatten(1, 2)], 1)
        return self.pos_drop(tokens + self._positions(height, width))

    def _positions(self, height: int, width: int) -> Tensor:
        """Positions [1, 1 + height * width, C] of a grid."""
        positions = self.pos_embed
        assert isinstance(positions, Tensor)
        rows, columns = self.patch_embed.grid_size
        if height == width and height * width == rows * columns:
            return positions
        # The published code adds 0.1 so that rounding cannot lose a row, and it moves the points that are sampled.
        grid = F.interpolate(
            positions[:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2),
            scale_factor=((height + 0.1) / rows, (width + 0.1) / columns),
            mode="bicubic",
        )
        return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    def attention_maps(self, images: Tensor) -> Tensor:
        """Attention of the last block.

        Args:
            images: [B, 3, H, W].

        Returns:
            [B, heads, N + 1, N + 1], from each token (row) to all; the class token is the first.
        """
        x = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        x = self.blocks[:-1](x)
        last: Any = self.blocks[-1]
        qkv = last.attn.qkv(last.norm1(x)).unflatten(2, (3, last.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights: Tensor = (qkv[0] @ qkv[1].transpose(-2, -1) * last.attn.scale).softmax(-1)
        return weights


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}

default_cfgs = generate_default_cfgs(
    {
        f"vit_{size}_patch{patch}_dino": {
            "input_size": (3, 224, 224),
            "fixed_input_size": False,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for size in _SIZES
        for patch in (16, 8)
    }
)


def _create(name: str, pretrained: bool, **options: Any) -> DINOVisionTransformer:
    _, size, patch, _ = name.split("_")
    return build_model_with_cfg(
        DINOVisionTransformer,
        name,
        pretrained,
        feature_cfg={"out_indices": options.pop("out_indices", 3), "feature_cls": "getter"},
        **{"patch_size": int(patch.removeprefix("patch")), **_SIZES[size], **options},
    )


@register_model
def vit_tiny_patch16_dino(pretrained: bool = False, **options: Any) -> DINOVisionTransformer:
    """ViT-T/16: 5.5 million parameters."""
    return _create("vit_tiny_patch16_dino", pretrained, **options)


@register_model
def vit_tiny_patch8_dino(pretrained: bool = False, **options: Any) -> DINOVisionTransformer:
    """ViT-T/8."""
    return _create("vit_tiny_patch8_dino", pretrained, **options)


@register_model
def vit_small_patch16_dino(pretrained: bool = False, **options: Any) -> DINOVisionTransformer:
    """ViT-S/16: 21.7 million parameters."""
    return _create("vit_small_patch16_dino", pretrained, **options)


@register_model
def vit_small_patch8_dino(pretrained: bool = False, **options: Any) -> DINOVisionTransformer:
    """ViT-S/8."""
    return _create("vit_small_patch8_dino", pretrained, **options)


@register_model
def vit_base_patch16_dino(pretrained: bool = False, **options: Any) -> DINOVisionTransformer:
    """ViT-B/16: 85.8 million parameters."""
    return _create("vit_base_patch16_dino", pretrained, **options)


@register_model
def vit_base_patch8_dino(pretrained: bool = False, **options: Any) -> DINOVisionTransformer:
    """ViT-B/8."""
    return _create("vit_base_patch8_dino", pretrained, **options)
