"""Vision transformers of timm's registry that leave tokens out on the way: merged ones, or dropped ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.classifiers.timm_classifier import timm_classifier
from models.layers.token_merging import merge_tokens
from models.layers.token_pruning import prune_tokens


def merged_tokens(
    name: str,
    num_classes: int = 1000,
    merges: int | list[int] = 8,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A vision transformer that merges tokens that are alike (ToMe, arXiv 2210.09461); weights are the host's.

    Args:
        name: Host, e.g. `deit_small_patch16_224`.
        num_classes: How many classes there are, K.
        merges: Pairs of tokens that each block merges, the paper's r, or a number for each block.
        in_chans: Channels of the images.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.
        pretrained: Whether to start from timm's weights of the host.
        options: Further arguments of the host.

    Returns:
        A network from images [B, in_chans, H, W] to logits [B, K].

    Raises:
        Mistake: An unknown host or one with other blocks, or numbers that do not fit its blocks.
    """
    network = timm_classifier(name, num_classes, in_chans, drop_path_rate, pretrained, options)
    merge_tokens(network, merges)
    return network


def pruned_tokens(
    name: str,
    num_classes: int = 1000,
    keep: float = 0.7,
    places: list[int] | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A vision transformer that drops tokens (DynamicViT, arXiv 2106.02034), to be trained with `ComputeBudget`.

    Args:
        name: Host, e.g. `deit_small_patch16_224`.
        num_classes: How many classes there are, K.
        keep: Share of its tokens that each choice leaves, the paper's rho.
        places: Which blocks choose, counted from 0; by default after a quarter, a half and three quarters of them.
        in_chans, drop_path_rate, pretrained, options: See `merged_tokens`.

    Returns:
        A network from images [B, in_chans, H, W] to logits [B, K].

    Raises:
        Mistake: An unknown host or one with other blocks or without a class token, or choices that it cannot make.
    """
    network = timm_classifier(name, num_classes, in_chans, drop_path_rate, pretrained, options)
    prune_tokens(network, keep, places)
    return network
