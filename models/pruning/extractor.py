"""The plan of a pruned classifier, carried out on the feature extractor that timm makes of the same network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models.compute import inference
from models.mistakes import Mistake
from models.pruning.initialisation import shrink
from models.pruning.plan import Kept, Plan

# Sides of the image that a pruned extractor is looked at with.
SIDE = 64


def shrink_extractor(body: Any, plan: Mapping[str, Any], afresh: bool) -> None:
    """Makes a feature extractor what it is by a classifier's plan, in place; its maps become narrower, too.

    Args:
        body: What `timm.create_model(name, features_only=True)` returned; its `feature_info` then says how many
            channels are left.
        plan: Of a classifier of this name, in plain values, as `python -m exp prune` writes them. What it says of
            layers behind the last map does not count.
        afresh: Whether its weights are random, see `shrink`.

    Raises:
        Mistake: The plan is for another network.
    """
    shrink(body, _of_extractor(Plan.of(plan), body), afresh)
    first = next(iter(body.parameters()))
    with inference(body):
        maps = body(torch.zeros(1, first.shape[1], SIDE, SIDE, device=first.device))
    for index, features in zip(body.feature_info.out_indices, maps, strict=True):
        body.feature_info.info[index]["num_chs"] = features.shape[1]


def _of_extractor(plan: Plan, body: nn.Module) -> Plan:
    """The part of a classifier's plan that is about its feature extractor, which may call `stages.0` `stages_0`."""
    own = {layer for layer, _ in body.named_modules()} | {layer for layer, _ in body.named_parameters()}
    called = {re.sub(r"^(\w+?)_(\d+)", r"\1.\2", layer): layer for layer in own} | {layer: layer for layer in own}
    layers: dict[str, Mapping[str, Kept]] = {
        called[layer]: sides for layer, sides in plan.layers.items() if layer in called
    }
    branches = None if plan.branches is None else tuple(called[each] for each in plan.branches if each in called)
    if not layers and not branches:
        raise Mistake(
            f"the plan of pruning is for another network, {plan.network or 'of which it says nothing'}: this backbone "
            "has none of its layers"
        )
    return Plan(plan.network, layers, plan.why, branches)
