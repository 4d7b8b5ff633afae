"""Builders of the recorded CondConv cases: static hosts of timm, with our layers put in."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from timm.layers.padding import get_padding_value
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from models.decisions import noted
from models.layers.cond_conv import CondConv2d
from models.official import load
from models.official.condconv import LAYOUT
from models.surgery import replace

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def layer(case: Case) -> dict[str, Tensor]:
    config = {name: value for name, value in case.config.items() if name != "kind"}
    geometry = {name: config.get(name, 1) for name in ("stride", "dilation")}
    config["padding"], dynamic = get_padding_value(config["padding"], config["kernel_size"], **geometry)
    if dynamic:
        config["padding"] = "same"
    convolution = CondConv2d(**config, routing="block")
    load(convolution, LAYOUT.to_ours(case.state))
    images = case.inputs["x"].requires_grad_()
    weights = case.inputs["routing_weights"].requires_grad_()
    y = convolution(images, weights)
    (y * case.inputs["ct"]).sum().backward()
    return {"out.y": y, "out.grad_x": images.grad, "out.grad_routing_weights": weights.grad} | gradients(convolution)


def inverted_residual_block(case: Case) -> dict[str, Tensor]:
    config = {name: value for name, value in case.config.items() if name != "kind"}
    num_experts, ratio = config.pop("num_experts"), config.pop("se_ratio")
    norm = partial(nn.BatchNorm2d, eps=config.pop("bn_eps"), momentum=config.pop("bn_momentum"))
    # The published class was built directly: the ratio of squeeze-and-excitation refers to the expanded width.
    squeeze = partial(SqueezeExcite, rd_ratio=ratio) if ratio else None
    block = InvertedResidual(**config, act_layer=nn.SiLU, norm_layer=norm, se_layer=squeeze)
    replace(
        nn.ModuleDict({"blocks": nn.ModuleList([block])}),
        partial(CondConv2d.like, num_experts=num_experts, routing="block"),
    )
    load(block, LAYOUT.to_ours(case.state))
    evaluated = block.eval()(case.inputs["x"])
    trained = block.train()(case.inputs["x"])
    (trained * case.inputs["ct"]).sum().backward()
    return {
        "out.routing_weights": noted(block)["conv_dw"].values,
        "out.y_eval": evaluated,
        "out.y_train": trained,
        **{f"out.after.{name}": value for name, value in block.named_buffers()},
        **gradients(block),
    }


def tiny_efficientnet_cc(case: Case) -> dict[str, Tensor]:
    config = case.config
    blocks = decode_arch_def(config["arch_def"], experts_multiplier=config["experts_multiplier"])
    experts = {
        f"blocks.{i}.{j}.*": block.pop("num_experts")
        for i, stage in enumerate(blocks)
        for j, block in enumerate(stage)
        if block.get("num_experts")
    }
    network = EfficientNet(
        blocks,
        num_classes=config["num_classes"],
        num_features=config["num_features"],
        stem_size=config["stem_size"],
        round_chs_fn=partial(round_channels, divisor=config["channel_divisor"]),
        pad_type=config["pad_type"],
        act_layer=nn.SiLU,
        norm_layer=partial(nn.BatchNorm2d, eps=config["bn_eps"]),
    )
    for names, num_experts in experts.items():
        replace(network, partial(CondConv2d.like, num_experts=num_experts, routing="block"), names=[names])
    load(network, LAYOUT.to_ours(case.state))
    evaluated = network.eval()(case.inputs["x"])
    trained = network.train()(case.inputs["x"])
    loss = F.cross_entropy(trained, case.inputs["target"])
    loss.backward()
    return {
        "out.logits_eval": evaluated,
        "out.logits_train": trained,
        "out.loss_train": loss,
        **gradients(network),
    }


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients by published name."""
    named = LAYOUT.to_official({name: parameter.grad for name, parameter in module.named_parameters()})
    return {f"grad.{name}": value for name, value in named.items()}


CASES = {
    "layer": layer,
    "inverted_residual_block": inverted_residual_block,
    "tiny_efficientnet_cc": tiny_efficientnet_cc,
}
