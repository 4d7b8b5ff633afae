"""A timm vision transformer in which every image chooses, in each layer, how far its patches look."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import Attention
from torch import nn

from models.classifiers.timm_classifier import timm_classifier
from models.layers.routed_attention import Routing
from models.layers.vit_spans import PatchGrid, RoutedViTAttention
from models.mistakes import Mistake
from models.surgery import replace_modules


def routed_spans(
    name: str,
    num_classes: int = 1000,
    orders: Sequence[int] = (0, 1, 2, 3),
    routing: Routing = "soft",
    routing_options: dict[str, Any] | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A vision transformer of timm's registry whose self-attention has routed spans.

    Args:
        name: Host, e.g. `deit_small_patch16_224` or `vit_small_patch14_reg4_dinov2`; see `timm.list_models("*vit*")`.
        num_classes: How many classes there are, K.
        orders: Spans: 0, the whole grid of patches; r, the (2r+1) x (2r+1) window.
        routing: `soft`, `hard` or `fixed`, see `models.layers.routed_attention.RoutedAttention`.
        routing_options: `pooling`, `temperature`, `eval_routing` and `binarize`, see
            `models.layers.routed_attention.PathController`.
        in_chans: Channels of the images.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.
        pretrained: Whether to start from timm's weights of the host.
        options: Further arguments of the host.

    Returns:
        A network from images [B, in_chans, H, W] to logits [B, K].

    Raises:
        Mistake: An unknown host or option, or one without timm's attention.
    """
    network = timm_classifier(name, num_classes, in_chans, drop_path_rate, pretrained, options)
    route_spans(network, orders, routing, **routing_options or {})
    return network


def route_spans(network: Any, orders: Sequence[int], routing: Routing = "soft", **options: Any) -> list[str]:
    """Routes the spans of all self-attention of a timm vision transformer, in place.

    Its weights and their names stay; a training may start from weights that have no path controllers.

    Args:
        network: E.g. of `timm.create_model`, of any size of images, with or without class and register tokens.
        orders, routing, options: See `routed_spans`.

    Returns:
        Dotted names of the layers.

    Raises:
        Mistake: An option that cannot be, or a network that is not of patches with timm's attention.
    """
    embedding: Any = getattr(network, "patch_embed", None)
    if not hasattr(embedding, "dynamic_feat_size") or not hasattr(network, "num_prefix_tokens"):
        raise Mistake(f"{type(network).__name__} has no grid of patches: spans are for timm's vision transformers")
    grid = PatchGrid(orders, network.num_prefix_tokens)
    replaced = replace_modules(network, Attention, partial(RoutedViTAttention, grid=grid, routing=routing, **options))
    embedding.register_forward_hook(grid.see)
    network.fresh_parts = {"path controllers": r".*\.attn\.controller\..*"}
    return replaced
