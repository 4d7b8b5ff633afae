"""Builders of the recorded UperNet cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_modules.parameter_groups import LayerDecay, parameter_groups
from lightning_modules.segmentation_losses import cross_entropy
from models.official import load
from models.official.upernet import LAYOUT
from models.segmenters.upernet import AUX_LEVEL, UperNet

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
# As published for the smallest backbone; `config.num_layers` is that of the layer-wise rule.
STAGE_WISE_LAYERS = 6
# As published; recorded with the auxiliary loss.
AUX_WEIGHT = 0.4


def upernet_convnext(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = UperNet(
        num_classes=config["ncls"],
        backbone="convnext_tiny_dense",
        hidden_dim=config["channels"],
        aux_dim=config["aux_channels"],
        pool_sizes=config["pool_scales"],
        options={"depths": config["depths"], "dims": config["dims"]},
    ).eval()
    load(network, LAYOUT.to_ours(case.state))
    features = network.features(case.inputs["image"])
    logits, auxiliary = network.head(features), network.auxiliary(features[AUX_LEVEL])
    loss = cross_entropy(logits, case.inputs["label"], normalisation="pixels")
    auxiliary_loss = AUX_WEIGHT * cross_entropy(auxiliary, case.inputs["label"], normalisation="pixels")
    (loss + auxiliary_loss).backward()
    gradients = LAYOUT.to_official(network.state_dict() | {name: p.grad for name, p in network.named_parameters()})
    return {
        "out.decode": logits,
        "out.aux": auxiliary,
        "out.loss_decode": loss,
        "out.loss_aux": auxiliary_loss,
        **{f"out.feat{i}": x for i, x in enumerate(features)},
        **{f"grad.{name}": gradient for name, gradient in gradients.items()},
        **groups(network, config),
    }


def groups(network: UperNet, config: dict[str, Any]) -> dict[str, Tensor]:
    """Factor of the learning rate of every parameter, by either rule, and whether it is free of weight decay."""
    rules = {
        "stage_wise": LayerDecay(config["decay"], "convnext_stage_wise", STAGE_WISE_LAYERS, "backbone"),
        "layer_wise": LayerDecay(config["decay"], "convnext_layer_wise", config["num_layers"], "backbone"),
    }
    results = {}
    for rule, decay in rules.items():
        scales, free = network.state_dict(), network.state_dict()
        for group in parameter_groups(network, lr=1.0, weight_decay=1.0, layer_decay=decay):
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                scales[name] = torch.full_like(parameter, group["lr_scale"])
                free[name] = torch.full_like(parameter, float(group["weight_decay"] == 0))
        results[f"out.lr_scale_{rule}"] = by_official_name(scales, config["param_names"])
        results["out.no_weight_decay"] = by_official_name(free, config["param_names"]).long()
    return results


def by_official_name(values: dict[str, Tensor], names: list[str]) -> Tensor:
    """The first number of each tensor, in the order of the official names."""
    official = LAYOUT.to_official(values)
    return torch.stack([official[name].flatten()[0] for name in names])


CASES = {"upernet_convnext": upernet_convnext}
