"""Builders of the recorded ADP-C cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anytime import iterate
from models.anytime.confidence import confidence
from models.layers.hrnet import HighResolutionModule, plain_conv
from models.layers.hrnet_exits import ExitHead
from models.layers.masked_conv import MaskedConv2d
from models.layers.regions import Region, pyramid
from models.layers.resize import resize
from models.official import load
from models.official.adpc import LAYOUT
from models.segmenters.adpc import ADPC, unsure

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
VOID = 255
# Pools of the redesigned heads.
POOLS = {"exit1": 3, "exit2": 2, "exit3": 1, "original": 0}


def masked_conv(case: Case) -> dict[str, Tensor]:
    results = {}
    # The recorded gradient is of a sum over the convolutions, weighted by their order.
    for order, (name, options) in enumerate(case.config["convs"].items(), 1):
        kernel_size = options["kernel_size"]
        assert options["padding"] == kernel_size // 2
        conv = MaskedConv2d(
            options["in_channels"], options["out_channels"], kernel_size, options["stride"], options["bias"]
        )
        own = {key.removeprefix(f"{name}."): value for key, value in case.state.items() if key.startswith(f"{name}.")}
        own.pop("square_dis")
        conv.load_state_dict({key.replace("Lambda", "falloff"): value for key, value in own.items()})
        x = case.inputs[f"x_{name}"].clone().requires_grad_()
        y = conv(x, Region(case.inputs[f"mask_{name}"] > 0))
        results |= {f"out.y_{name}": y, f"out.dense_{name}": conv(x)}
        (order * y.square().mean()).backward()
        results[f"grad.in.x_{name}"] = x.grad
        for key, parameter in conv.named_parameters():
            results[f"grad.{name}.{key.replace('falloff', 'Lambda')}"] = parameter.grad
    return results


def confidence_mask(case: Case) -> dict[str, Tensor]:
    logits, config = case.inputs["logits"], case.config
    results = {"out.confidence": confidence(logits.movedim(1, -1))}
    masks = {
        "conf_thre": unsure(logits, config["conf_thre"]),
        "entropy_thre": unsure(logits, -config["entropy_thre"], "entropy"),
    }
    levels = [(logits.shape[2] // height).bit_length() - 1 for height, _ in config["sizes"]]
    for name, mask in masks.items():
        regions = pyramid(mask, max(levels) + 1)
        for level, (height, width) in zip(levels, config["sizes"], strict=True):
            results[f"out.{name}_{height}x{width}"] = regions[level].mask.float()
    return results


def exit_heads(case: Case) -> dict[str, Tensor]:
    results = {}
    for (name, pools), chans in zip(POOLS.items(), case.config["ch"], strict=True):
        hidden = case.config["inter_channel"] if pools else chans
        head = ExitHead(chans, hidden, case.config["num_classes"], pools, bn_momentum=0.01).eval()
        official = {key.split(".", 1)[1]: value for key, value in case.state.items() if key.startswith(f"{name}.")}
        layers = [f"convs.{i}.{part}" for i in range(len(head.convs)) for part in (0, 1)] + ["classifier"]
        places = sorted({int(key.split(".")[0]) for key in official})
        ours = dict(zip(places, layers, strict=True))
        split = (key.split(".", 1) for key in official)
        head.load_state_dict({f"{ours[int(place)]}.{kind}": official[f"{place}.{kind}"] for place, kind in split})
        with torch.no_grad():
            results[f"out.{name}"] = head(case.inputs[name])
    return results


def hr_module(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = HighResolutionModule(config["num_blocks"], config["channels"], "bilinear", 0.01, plain_conv).eval()
    network.load_state_dict(case.state)
    maps = [case.inputs[f"x{i}"] for i in range(config["num_branches"])]
    with torch.no_grad():
        return {f"out.y{i}": y for i, y in enumerate(network(maps, [None] * len(maps)))}


def build(config: dict[str, Any]) -> ADPC:
    """Our network for the constructor arguments of the published one."""
    return ADPC(
        num_classes=config["num_classes"],
        stages=config["stages"],
        in_chans=config["input"][1],
        pooled_dim=config["inter_channel"] if config["exit_type"] == "flex" else None,
        threshold=config["conf_thre"] if config["mask"] else None,
    )


def model(case: Case) -> dict[str, Tensor]:
    network = build(case.config).eval()
    load(network, LAYOUT.to_ours(case.state))
    images = case.inputs["image"]
    with torch.no_grad():
        exits = list(iterate(network, images))
    results = {f"out.exit{i}": logits for i, logits in enumerate(exits, 1)}
    results["out.flops"] = torch.tensor(network.published_macs(images.shape[1:]))
    return results | masks(network, exits, case)


def masks(network: ADPC, exits: list[Tensor], case: Case) -> dict[str, Tensor]:
    """The recorded masks: after each exit but the last, at the sizes that the file names."""
    results = {}
    for name in case.shapes:
        if name.startswith("out.mask_after_out"):
            exit, _, size = name.removeprefix("out.mask_after_out").partition("_")
            mask = network.unsure(int(exit) - 1, exits[int(exit) - 1])
            width = int(size.split("x")[1]) if size else mask.shape[2]
            level = (mask.shape[2] // width).bit_length() - 1
            results[name] = pyramid(mask, level + 1)[level].mask.float()
    return results


def train_step(case: Case) -> dict[str, Tensor]:
    network = build(case.config).train()
    load(network, LAYOUT.to_ours(case.state))
    exits = list(iterate(network, case.inputs["image"]))
    results = {f"out.exit{i}": logits for i, logits in enumerate(exits, 1)}
    results |= losses(exits, case)
    results["out.loss_total"].backward()
    results |= masks(network, exits, case)
    after = LAYOUT.to_official(network.state_dict())
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    buffers = {name: torch.zeros(()) for name in network.state_dict() if name not in gradients}
    grads = LAYOUT.to_official({name: value for name, value in (gradients | buffers).items() if value is not None})
    for name in case.shapes:
        if name.startswith("out.bn_after."):
            results[name] = after[name.removeprefix("out.bn_after.")]
        elif name.startswith("grad."):
            results[name] = grads[name.removeprefix("grad.")]
    return results


def exit_loss(case: Case) -> dict[str, Tensor]:
    exits = [case.inputs[name].clone().requires_grad_() for name in sorted(case.inputs) if name.startswith("exit")]
    results = losses(exits, case)
    results["out.loss_total"].backward()
    return results | {f"grad.in.exit{i}": logits.grad for i, logits in enumerate(exits, 1)}


def losses(exits: list[Tensor], case: Case) -> dict[str, Tensor]:
    """Weighted cross entropy of each exit at the labels' resolution, and the weighted sum."""
    label, weight = case.inputs["label"], case.inputs["class_weight"]
    each = [F.cross_entropy(resize(x, label.shape[-2:]), label, weight, ignore_index=VOID) for x in exits]
    total = torch.stack([loss * share for loss, share in zip(each, case.config["ee_weights"], strict=True)]).sum()
    return {f"out.loss_exit{i}": loss for i, loss in enumerate(each, 1)} | {"out.loss_total": total}


CASES = {
    "masked_conv": masked_conv,
    "confidence_mask": confidence_mask,
    "exit_heads": exit_heads,
    "hr_module": hr_module,
    "model_ee": model,
    "model_rh": model,
    "model_ee_ca": model,
    "model_adpc": model,
    "train_step": train_step,
    "exit_loss": exit_loss,
}
