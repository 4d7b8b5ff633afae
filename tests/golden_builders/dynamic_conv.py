"""Builders of the recorded Dynamic Convolution cases: static hosts of timm, with our layers put in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from callbacks.annealing import Annealing, find_buffers
from models.decisions import noted
from models.layers.dynamic_conv import DynamicConv2d, KernelAttention
from models.official import load
from models.official.dynamic_conv import LAYOUT
from models.surgery import replace

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def attention(case: Case) -> dict[str, Tensor]:
    config = case.config
    # The recorded weights are an attention without its convolution: for the layout it needs one.
    alone = {f"attention.{name}": value for name, value in case.state.items()} | {"weight": torch.empty(0)}
    network = KernelAttention(config["in_planes"], config["K"], config["ratio"])
    ours = LAYOUT.to_ours(alone)
    load(network, {name.removeprefix("attention."): value for name, value in ours.items() if name != "weight"})
    results = {}
    for temperature in config["temperatures"]:
        set_temperature(network, temperature)
        results[f"out.pi_t{temperature}"] = network(case.inputs["x"])
    return results


def temperature_schedule(case: Case) -> dict[str, Tensor]:
    start = int(case.inputs["start"]) if "start" in case.inputs else case.config["start"]
    # Three less at every epoch, until it is one.
    epochs, calls = range(1, (start - 1) // 3 + 1), case.config["calls"]
    annealing = Annealing("temperature", start, 1, shape="steps", unit="epoch", milestones=epochs)
    temperatures = [round(annealing.value(epoch, calls), 9) for epoch in range(calls + 1)]
    return {"out.temperature_before_epoch": torch.tensor(temperatures).long()}


def set_temperature(network: nn.Module, temperature: float) -> None:
    for buffer in find_buffers(network, "KernelAttention", "temperature"):
        buffer.fill_(temperature)


def layer(case: Case) -> dict[str, Tensor]:
    config = dict(case.config)
    convolution = DynamicConv2d(
        config["in_planes"],
        config["out_planes"],
        config["kernel_size"],
        config["stride"],
        config["padding"],
        config["dilation"],
        config["groups"],
        config["bias"],
        num_kernels=config["K"],
        ratio=config["ratio"],
    )
    load(convolution, LAYOUT.to_ours(case.state))
    set_temperature(convolution, config["temperature"])
    images = case.inputs["x"].requires_grad_()
    y = convolution(images)
    (y * case.inputs["ct"]).sum().backward()
    return {"out.y": y, "out.pi": noted(convolution)[""].values, "out.grad_x": images.grad} | gradients(convolution)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


def residual_block(kind: str, in_chans: int, planes: int, stride: int) -> nn.Module:
    """A static block of timm; its shortcut is a convolution where the shape changes."""
    out_chans = planes * BLOCKS[kind].expansion
    shortcut = None
    if stride != 1 or in_chans != out_chans:
        shortcut = nn.Sequential(nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm2d(out_chans))
    return BLOCKS[kind](in_chans, planes, stride, shortcut)


def block(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = residual_block(config["block"], config["inplanes"], config["planes"], config["stride"])
    replace(network, DynamicConv2d.like, names=["*"])
    load(network, LAYOUT.to_ours(case.state))
    set_temperature(network, config["temperature"])
    evaluated = network.eval()(case.inputs["x"])
    trained = network.train()(case.inputs["x"])
    (trained * case.inputs["ct"]).sum().backward()
    return {
        "out.y_eval": evaluated,
        "out.y_train": trained,
        **{f"out.after.{name}": value for name, value in network.named_buffers()},
        **gradients(network),
    }


class TinyResNet(nn.Module):
    """Static stem at full resolution, one basic block for each width, mean over the pixels, classifier."""

    def __init__(self, stem: int, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        ins = [stem, *widths[:-1]]
        blocks = [residual_block("basic", ins[i], width, 1 if i == 0 else 2) for i, width in enumerate(widths)]
        self.layers = nn.Sequential(*blocks)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.bn1(self.conv1(x)).relu()).mean((2, 3)))


def tiny_dy_resnet(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = TinyResNet(len(case.state["bn1.weight"]), config["widths"], config["num_classes"])
    replace(network, DynamicConv2d.like)
    load(network, LAYOUT.to_ours(case.state))
    results = {}
    for temperature in config["temperatures"]:
        set_temperature(network, temperature)
        results[f"out.logits_eval_t{temperature}"] = network.eval()(case.inputs["x"])
    set_temperature(network, config["temperatures"][0])
    results["out.logits_train"] = network.train()(case.inputs["x"])
    results["out.loss_train"] = F.cross_entropy(results["out.logits_train"], case.inputs["target"])
    results["out.loss_train"].backward()
    return results | gradients(network)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients by public name."""
    grads = {name: parameter.grad for name, parameter in module.named_parameters()}
    named = LAYOUT.to_official(module.state_dict() | grads)
    return {f"grad.{name}": value for name, value in named.items()}


CASES = {
    "attention": attention,
    "temperature_schedule": temperature_schedule,
    "layer": layer,
    "basic_block": block,
    "bottleneck_block": block,
    "tiny_dy_resnet": tiny_dy_resnet,
}
