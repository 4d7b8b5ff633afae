"""Where a vision transformer's class token looks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def has_class_attention(network: nn.Module) -> bool:
    """Whether a network is a vision transformer of timm's with a class token, in whose last block it attends."""
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        return False
    attention = getattr(blocks[-1], "attn", None)
    needed = ("qkv", "num_heads", "scale", "q_norm", "k_norm")
    return getattr(network, "num_prefix_tokens", 0) > 0 and all(hasattr(attention, name) for name in needed)


@torch.no_grad()
def class_attention(network: Any, images: Tensor) -> Tensor:
    """Shares of attention that the class token gives to the patches in the last block, by head.

    Reference: "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294, figure 1.

    Args:
        network: One that `has_class_attention`, in evaluation mode.
        images: [B, 3, H, W].

    Returns:
        [B, heads, h, w] for h x w patches; what goes to the class token itself is left out.
    """
    attention = network.blocks[-1].attn
    tokens: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    try:
        network.forward_features(images)
    finally:
        hook.remove()
    batch, count, _ = tokens[0].shape
    qkv = attention.qkv(tokens[0]).reshape(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(qkv[0]), attention.k_norm(qkv[1])
    shares = (query[:, :, :1] * attention.scale @ key.mT).softmax(-1)[:, :, 0, network.num_prefix_tokens :]
    height, width = (
        side // patch for side, patch in zip(images.shape[2:], network.patch_embed.patch_size, strict=True)
    )
    return shares.unflatten(-1, (height, width))
