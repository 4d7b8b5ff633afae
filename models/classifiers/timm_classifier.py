"""Any network of timm's registry, ours included, as a classifier."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import nn

import models.backbones  # noqa: F401  registers our networks with timm
from models.mistakes import Mistake
from models.pixels import state_pretrained
from models.timm_options import create


def timm_classifier(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A classifier by its name in timm's registry.

    Args:
        name: E.g. `convnext_tiny`, `resnet50`, `ladder_r50_4_width`; see `timm.list_models()`.
        num_classes: How many classes there are, K.
        in_chans: Channels of the images.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.
        pretrained: Whether to start from timm's weights of this network.
        options: Further arguments of the network, e.g. `{depths: [2, 2, 6, 2], dims: [32, 64, 128, 256]}`.

    Returns:
        A network from images [B, in_chans, H, W] to logits [B, K].

    Raises:
        Mistake: timm knows no network of this name; the message names the nearest one. Or
            the network does not take some of the options.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists all names"
        raise Mistake(f"no network is called '{name}': {hint}")
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "pretrained": pretrained}
    if drop_path_rate:
        arguments["drop_path_rate"] = drop_path_rate
    network: Any = create(name, options or {}, **arguments)
    state_pretrained(network, pretrained, options)
    if pretrained and network.pretrained_cfg.get("num_classes") != num_classes:
        found = network.get_classifier()
        # A distilled DeiT has two.
        for head in found if isinstance(found, tuple) else (found,):
            _quieten(head)
    return network


def _quieten(head: nn.Module) -> None:
    """Makes the logits of a new head on trained features small.

    Families initialise heads for trunks that are random, too: EfficientNet's logits would have a spread of several
    units, and the first steps would go into the trunk to undo them.
    """
    for module in head.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
