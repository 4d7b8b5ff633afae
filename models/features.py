"""One vector for each image from any network: what its classifier looks at, or the pooled maps of its backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import Format
from torch import Tensor, nn

from models.mistakes import Mistake

# Images [B, 3, H, W] to features [B, C].
Embedder = Callable[[Tensor], Tensor]


def embedder_of(network: nn.Module) -> Embedder | None:
    """What makes features [B, C] of images [B, 3, H, W]; None for a network that has none.

    Of a network of timm's, ours included, what its classifier is given. Of any other, the coarsest map of the backbone
    in it, averaged over its places: one that timm calls a feature extractor, or an attribute `backbone`. Of a
    classifier without a backbone, what its last linear map to the classes is given, in the last exit of several.

    Args:
        network: In evaluation mode when it is asked for features.
    """
    if callable(getattr(network, "forward_features", None)) and callable(getattr(network, "forward_head", None)):
        return lambda images: _before_the_classifier(network, images)
    extractor = next((each for each in network.modules() if _hands_out_maps(each)), None)
    if extractor is not None:
        return lambda images: _pooled(_last(extractor(images)), _is_channels_last(extractor))
    backbone = getattr(network, "backbone", None)
    if isinstance(backbone, nn.Module) and not isinstance(backbone, nn.ModuleDict | nn.ModuleList):
        return lambda images: _pooled(_last(backbone(_as_it_normalises(network, images))))
    classes = getattr(network, "num_classes", None)
    heads = [each for each in network.modules() if isinstance(each, nn.Linear) and classes in (None, each.out_features)]
    return (lambda images: _into_the_last(network, heads, images)) if heads else None


def _before_the_classifier(network: Any, images: Tensor) -> Tensor:
    features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
    return features


def _hands_out_maps(module: nn.Module) -> bool:
    """Whether a module is what timm makes of a network with `features_only`."""
    return callable(getattr(getattr(module, "feature_info", None), "channels", None))


def _is_channels_last(extractor: nn.Module) -> bool:
    return getattr(extractor, "output_fmt", Format.NCHW) == Format.NHWC


def _last(maps: Any) -> Tensor:
    """The coarsest of some maps, which come finest first; a map by itself."""
    while not isinstance(maps, Tensor):
        maps = list(maps.values() if isinstance(maps, Mapping) else maps)[-1]
    return maps


def _pooled(maps: Tensor, channels_last: bool = False) -> Tensor:
    return maps.mean((1, 2) if channels_last else tuple(range(2, maps.ndim)))


def _as_it_normalises(network: Any, images: Tensor) -> Tensor:
    """Images as a detector of torchvision's, which normalises them itself, gives them to its backbone."""
    transform: Any = getattr(network, "transform", None)
    if not hasattr(transform, "image_mean"):
        return images
    return torch.stack([transform.normalize(image) for image in images])


def _into_the_last(network: nn.Module, heads: list[nn.Linear], images: Tensor) -> Tensor:
    """What the last of some linear maps to be run is given, [B, C]."""
    given: list[Tensor] = []

    def see(head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]):
            given.append(inputs[0])

    hooks = [head.register_forward_pre_hook(see) for head in heads]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if given and len(images) > 1 and given[-1].ndim == 2 and len(given[-1]) != len(images):
        # Each image takes a way of its own.
        return torch.cat([_into_the_last(network, heads, image) for image in images.split(1)])
    if not given or given[-1].ndim != 2 or len(given[-1]) != len(images):
        raise Mistake(f"{type(network).__name__} has no features: its classifier sees no single vector of an image")
    return given[-1]
