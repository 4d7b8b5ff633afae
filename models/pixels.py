"""How the pixels look that weights were trained on: what a network or an official layout states of it.

A statement is plain values: ``mean`` and ``std`` of three channels, and, where they differ from RGB and 1, their
``order`` (`rgb`, `bgr`) and the largest value before the mean is subtracted, ``scale`` (1.0, 255.0); where they are
known, ``size`` (height, width), ``interpolation`` and ``crop`` of the images. A network that starts from scratch states
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

Stated = dict[str, Any]

IMAGENET: Stated = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# Of the studies of pruning: CIFAR-10's mean and, of its standard deviations, the mean over images.
CIFAR: Stated = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
# From -1 to 1.
HALVES: Stated = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# Caffe's, which MSRA's ResNets and what grew from them have.
BGR_BYTES: Stated = {"order": "bgr", "scale": 255.0, "mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0)}
# Of networks that normalise their images themselves.
AS_THEY_ARE: Stated = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_ATTRIBUTE = "stated_pixels"


def of_timm(config: Mapping[str, Any]) -> Stated:
    """What a network's `pretrained_cfg` says of the images that its weights take.

    Args:
        config: timm's, as a dict.
    """
    stated: Stated = {name: tuple(map(float, config[name])) for name in ("mean", "std")}
    stated["size"] = tuple(config["input_size"][1:])
    if config.get("interpolation") in ("nearest", "bilinear", "bicubic"):
        stated["interpolation"] = config["interpolation"]
    if config.get("crop_pct"):
        stated["crop"] = float(config["crop_pct"])
    return stated


def state_pretrained(network: nn.Module, pretrained: bool, options: Mapping[str, Any] | None = None) -> None:
    """Notes on a network of timm's what its weights expect, if it was built with them.

    timm says it of every network, whether it has weights or starts from scratch.

    Args:
        network: What `timm.create_model` returned, features or a classifier.
        pretrained: Whether it was asked for its weights.
        options: Further arguments that it was asked with; a `checkpoint_path` is a file of such weights.
    """
    if pretrained or (options or {}).get("checkpoint_path"):
        setattr(network, _ATTRIBUTE, of_timm(network.pretrained_cfg))  # type: ignore[arg-type]


def of_torchvision(preset: Any) -> Stated | None:
    """What torchvision's weights say of the images that they take; None where the network normalises them itself.

    Args:
        preset: `weights.transforms()`.
    """
    if not hasattr(preset, "mean"):
        return None
    stated: Stated = {"mean": tuple(preset.mean), "std": tuple(preset.std)}
    if len(getattr(preset, "crop_size", [])) == 1:
        (size,), (resized,) = preset.crop_size, preset.resize_size
        stated |= {"size": (size, size), "crop": size / resized, "interpolation": preset.interpolation.value}
    return stated


def pixels_of(module: nn.Module) -> dict[str, Stated]:
    """What the weights that a module was built with expect, by the names of the networks that state it."""
    return {name: getattr(each, _ATTRIBUTE) for name, each in module.named_modules() if hasattr(each, _ATTRIBUTE)}


def normalises_itself(module: nn.Module) -> bool:
    """Whether a network takes images in [0, 1] and normalises them, as torchvision's own detectors do."""
    return any(hasattr(each, "image_mean") and hasattr(each, "image_std") for each in module.modules())


def of_published(network: nn.Module) -> Stated | None:
    """What weights expect that timm publishes of a network, whether it was built with them or not.

    Args:
        network: A network of timm's, or one that does nothing but wrap it; of others nothing is known.
    """
    while not hasattr(network, "pretrained_cfg") and len(inner := list(network.children())) == 1:
        network = inner[0]
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    return of_timm(config) if any(config.get(place) for place in ("url", "hf_hub_id", "file")) else None


@dataclass(frozen=True)
class Conversion:
    """Makes of images that look as one statement says images that look as another says: `factor * image + offset`.

    Args:
        factor: Of each channel.
        offset: Of each channel.
        flips: Whether the order of the channels is reversed first.
    """

    factor: tuple[float, ...]
    offset: tuple[float, ...]
    flips: bool

    @classmethod
    def between(cls, given: Stated, wanted: Stated) -> Conversion | None:
        """What makes images that look as `wanted` says of such as `given` says; None if they are the same."""
        flips = given.get("order", "rgb") != wanted.get("order", "rgb")
        ranges = []
        for stated in (given, wanted):
            scale = stated.get("scale", 1.0)
            pairs = zip(stated["mean"], stated["std"], strict=True)
            ranges.append([(mean / scale, std / scale) for mean, std in pairs])
        old, new = (ranges[0][::-1] if flips else ranges[0]), ranges[1]
        factor = tuple(own[1] / other[1] for own, other in zip(old, new, strict=True))
        offset = tuple((own[0] - other[0]) / other[1] for own, other in zip(old, new, strict=True))
        same = not flips and all(value == 1 for value in factor) and not any(offset)
        return None if same else cls(factor, offset, flips)
