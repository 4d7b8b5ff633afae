"""A timm classifier with dynamic kernels in place of some of its convolutions."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Literal

from torch import nn

from models.classifiers.timm_classifier import timm_classifier
from models.layers.cond_conv import CondConv2d
from models.layers.dr_conv import DRConv2d
from models.layers.dynamic_conv import DynamicConv2d
from models.mistakes import Mistake
from models.surgery import SQUEEZE_EXCITE, Kind, replace

LAYERS: dict[str, Any] = {"cond_conv": CondConv2d, "dynamic_conv": DynamicConv2d, "dr_conv": DRConv2d}


def dynamic_kernels(
    name: str,
    num_classes: int = 1000,
    layer: Literal["cond_conv", "dynamic_conv", "dr_conv"] = "cond_conv",
    layer_options: dict[str, Any] | None = None,
    kinds: list[Kind] | None = None,
    kernel_sizes: list[int] | None = None,
    stages: list[int] | None = None,
    last_blocks: int | None = None,
    names: list[str] | None = None,
    exclude: list[str] | None = None,
    classifier: bool = False,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A classifier of timm's registry whose convolutions are dynamic.

    What mixing and routing cost are ordinary operators: `models.compute` counts them with the rest. Every image costs
    the same.

    Args:
        name: Host, e.g. `mobilenetv2_100`; see `timm.list_models()`.
        num_classes: How many classes there are, K.
        layer: What takes the place of a convolution: `cond_conv` (arXiv 1904.04971), `dynamic_conv` (arXiv 1912.03458)
            or `dr_conv` (arXiv 2003.12243).
        layer_options: Options of the layer, e.g. `{num_experts: 8, routing: block}`; see the `like` of its class.
        kinds: Which convolutions become dynamic, here and below as in `models.surgery.replace`.
        kernel_sizes: Sizes of square kernels.
        stages: Indices of stages; negative ones count from the last.
        last_blocks: How many blocks, counted from the last.
        names: Patterns of dotted names.
        exclude: Patterns of names that stay static; None for squeeze-and-excitation.
        classifier: Whether the classifier becomes dynamic too.
        in_chans: Channels of the images.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.
        pretrained: Whether to start from timm's weights of the host; with `layer_options: {init: copy}` every kernel
            does.
        options: Further arguments of the host.

    Returns:
        A network from images [B, in_chans, H, W] to logits [B, K].

    Raises:
        Mistake: An unknown host, layer or option, or a selection that matches nothing.
    """
    network = timm_classifier(name, num_classes, in_chans, drop_path_rate, pretrained, options)
    if layer not in LAYERS:
        raise Mistake(f"a layer is one of {', '.join(LAYERS)}, not {layer!r}")
    like = LAYERS[layer].like
    of_conv = {*inspect.signature(nn.Conv2d).parameters, "conv"}
    takes = [*inspect.signature(LAYERS[layer]).parameters, *inspect.signature(like).parameters]
    choices = [option for option in dict.fromkeys(takes) if option not in of_conv | {"options"}]
    if unknown := sorted(set(layer_options or {}) - set(choices)):
        raise Mistake(f"{layer} has no option {', '.join(unknown)}; it has {', '.join(choices)}")
    replace(
        network,
        partial(like, **(layer_options or {})),
        kinds=kinds,
        kernel_sizes=kernel_sizes,
        stages=stages,
        last_blocks=last_blocks,
        names=names,
        exclude=SQUEEZE_EXCITE if exclude is None else exclude,
        classifier=classifier,
    )
    return network
