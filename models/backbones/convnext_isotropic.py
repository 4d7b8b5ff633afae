"""Isotropic ConvNeXt: the blocks of ConvNeXt at one resolution and one width, like a vision transformer.

Reference: "A ConvNet for the 2020s", arXiv 2201.03545, section 3.3.
"""

from typing import Any

import numpy as np
from timm.layers import LayerNorm, LayerNorm2d, NormMlpClassifierHead, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn


class ConvNeXtIsotropic(nn.Module):
    """Patch embedding without a norm, `depth` ConvNeXt blocks, mean pooling, LayerNorm, linear classifier.

    Args:
        depth: Number of blocks.
        dim: Channels of every block.
        patch_size: Kernel and stride of the patch embedding.
        in_chans: Channels of the images.
        num_classes: Classes; 0 for pooled and normalised features.
        global_pool: timm's name of a pooling; empty for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.
        ls_init_value: Initial LayerScale; None or 0 for no LayerScale.
        head_init_scale: Factor on the initial weights of the classifier.
    """

    def __init__(
        self,
        depth: int = 18,
        dim: int = 384,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ls_init_value: float | None = None,
        head_init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dim
        self.grad_checkpointing = False
        self.stem = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.blocks = nn.Sequential(
            *(
                ConvNeXtBlock(dim, ls_init_value=ls_init_value or None, norm_layer=LayerNorm, drop_path=drop_path)
                for drop_path in np.linspace(0, drop_path_rate, depth).tolist()
            )
        )
        self.feature_info = [{"num_chs": dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)]
        self.head = NormMlpClassifierHead(
            dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, norm_layer=LayerNorm2d
        )
        self.apply(_init_weights)
        for parameter in self.get_classifier().parameters():
            parameter.data.mul_(head_init_scale)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm orders the parameters from stem to head."""
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier of `num_classes` classes in place of the old one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to the last feature map [B, dim, H / patch_size, W / patch_size]."""
        x = self.stem(x)
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits [B, num_classes], or to normalised pooled features [B, dim]."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    # One resolution: like a vision transformer of timm's, it hands out its last three maps.
    feature_cfg = {"out_indices": tuple(range(-min(3, kwargs["depth"]), 0)), "flatten_sequential": True}
    return build_model_with_cfg(ConvNeXtIsotropic, name, pretrained, feature_cfg=feature_cfg, **kwargs)


_ENTRY = {"pool_size": (14, 14), "first_conv": "stem", "classifier": "head.fc"}
default_cfgs = generate_default_cfgs({f"convnext_isotropic_{size}": _ENTRY for size in ("small", "base", "large")})


@register_model
def convnext_isotropic_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Against ViT-S: 22.3 M parameters, 4.3 G multiply-adds."""
    return _create("convnext_isotropic_small", pretrained, **{"depth": 18, "dim": 384} | kwargs)


@register_model
def convnext_isotropic_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Against ViT-B: 87.1 M parameters, 16.9 G multiply-adds."""
    return _create("convnext_isotropic_base", pretrained, **{"depth": 18, "dim": 768} | kwargs)


@register_model
def convnext_isotropic_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Against ViT-L: 305.9 M parameters, 59.7 G multiply-adds; the only one trained with LayerScale."""
    defaults = {"depth": 36, "dim": 1024, "ls_init_value": 1e-6}
    return _create("convnext_isotropic_large", pretrained, **defaults | kwargs)
