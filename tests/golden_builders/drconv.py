"""Builders of the recorded DRConv cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.shufflenet_drconv import GuidedShuffleBlock, ShuffleNetDRConv
from models.decisions import noted
from models.layers.dr_conv import DRConv2d, gathered_region_conv2d, masked_region_conv2d
from models.official import load
from models.official.drconv import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.library.golden import Case

TOLERANCE = 1e-5
BLOCK, OUR_BLOCK = "stage1_block1.", "stages.0.0."
LAYER, OUR_LAYER = f"{BLOCK}conva_right.conv.", f"{OUR_BLOCK}expand.conv."
# Of the paper's variant of the layer, in shallowtoil/DRConv-PyTorch at dafce873.
PAPER_LAYER = {"conv_kernel.1.": "generator.hidden.", "conv_kernel.3.": "generator.banks.", "conv_guide.": "guide."}


def region_matmul(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs
    banks = inputs["weight"].permute(0, 3, 1, 2)[..., None, None]
    results = {"out.y": gathered_region_conv2d(inputs["x"], banks, inputs["mask"])}
    for use_alpha in (False, True):
        x, leaf, alpha = (value.clone().requires_grad_() for value in (inputs["x"], inputs["weight"], inputs["alpha"]))
        banks = leaf.permute(0, 3, 1, 2)[..., None, None]
        options = {"beta": case.config["beta"], "use_alpha": use_alpha}
        y = masked_region_conv2d(x, banks, inputs["mask"], alpha, **options)
        torch.testing.assert_close(y.detach(), results["out.y"])
        (y * inputs["ct"]).sum().backward()
        for name, value in (("x", x), ("weight", leaf), ("alpha", alpha)):
            results[f"out.grad_{name}_use_alpha{use_alpha:d}"] = value.grad
    return results


def layer(case: Case) -> dict[str, Tensor]:
    config = dict(case.config)
    options = {"num_regions": config.pop("groups_num"), "num_experts": config.pop("num_W")}
    options |= {new: config.pop(old) for old, new in (("use_alpha", "use_alpha"), ("beta", "beta")) if old in config}
    config.pop("kind")
    # The published layer accepts this one and ignores it.
    config.pop("groups", None)
    conv = DRConv2d(**config, **options, guide="given")
    conv.load_state_dict(named(case.state, our_layer_name))
    x, scores = (case.inputs[name].clone().requires_grad_() for name in ("x", "guide_logits"))
    y = conv.train()(x, scores)
    (y * case.inputs["ct"]).sum().backward()
    mask = scores.argmax(1)
    assert torch.equal(F.interpolate(mask[:, None].float(), y.shape[-2:])[:, 0].long(), noted(conv)[""].values)
    with torch.no_grad():
        torch.testing.assert_close(conv.eval()(x, scores), y)
    return {
        "out.y": y,
        "out.mask": mask,
        "out.grad_x": x.grad,
        "out.grad_guide_logits": scores.grad,
        **gradients(conv, official_layer_name),
    }


def paper_layer(case: Case) -> dict[str, Tensor]:
    config = case.config
    geometry = (config["in_channels"], config["out_channels"], config["kernel_size"])
    conv = DRConv2d(
        *geometry,
        **config["conv_kwargs"],
        bias=False,
        num_regions=config["region_num"],
        generator="pool_conv",
        guide="conv",
    )
    conv.load_state_dict(named(case.state, our_layer_name))
    x = case.inputs["x"].clone().requires_grad_()
    y = conv.train()(x)
    (y * case.inputs["ct"]).sum().backward()
    with torch.no_grad():
        evaluated = conv.eval()(x)
    return {
        "out.y": y,
        "out.y_eval": evaluated,
        "out.region": noted(conv)[""].values,
        "out.grad_x": x.grad,
        **gradients(conv, official_layer_name),
    }


def shuffle_block(case: Case) -> dict[str, Tensor]:
    config = case.config
    regions, stride = config["groups_num"], config["stride"]
    routed = case.state["conva_right.conv.weight"].shape[-1]
    block = GuidedShuffleBlock(config["inp"], config["oup"], stride, regions, config.get("num_W", routed))
    block.load_state_dict(named(case.state, our_block_name))
    with torch.no_grad():
        evaluated = block.eval()(case.inputs["x"])
    trained = block.train()(case.inputs["x"])
    (trained * case.inputs["ct"]).sum().backward()
    after = {f"out.after.{official_block_name(name)}": value for name, value in block.named_buffers()}
    return {"out.y_eval": evaluated, "out.y_train": trained, **after, **gradients(block, official_block_name)}


def tiny_shufflenet(case: Case) -> dict[str, Tensor]:
    config = case.config
    routed = case.state["stage1_block1.conva_right.conv.weight"].shape[-1]
    network = ShuffleNetDRConv(
        config["channels"],
        config["repeats"],
        num_regions=config["groups_num"],
        num_experts=config.get("num_W", routed),
        in_chans=case.inputs["x"].shape[1],
        num_classes=config["num_classes"],
    )
    load(network, LAYOUT.to_ours(case.state))
    with torch.no_grad():
        evaluated = network.eval()(case.inputs["x"])
    trained = network.train()(case.inputs["x"])
    loss = F.cross_entropy(trained, case.inputs["target"])
    loss.backward()
    return {
        "out.logits_eval": evaluated,
        "out.logits_train": trained,
        "out.loss_train": loss,
        **gradients(network, LAYOUT.official_name),
    }


def our_block_name(name: str) -> str:
    return LAYOUT.our_name(BLOCK + name).removeprefix(OUR_BLOCK)


def official_block_name(name: str) -> str:
    return LAYOUT.official_name(OUR_BLOCK + name).removeprefix(BLOCK)


def our_layer_name(name: str) -> str:
    for official, ours in PAPER_LAYER.items():
        if name.startswith(official):
            return name.replace(official, ours, 1)
    # No published network has a layer with a bias.
    return name if name == "bias" else LAYOUT.our_name(LAYER + name).removeprefix(OUR_LAYER)


def official_layer_name(name: str) -> str:
    for official, ours in PAPER_LAYER.items():
        if name.startswith(ours):
            return name.replace(ours, official, 1)
    return name if name == "bias" else LAYOUT.official_name(OUR_LAYER + name).removeprefix(LAYER)


def named(state: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    return {rename(name): value for name, value in state.items()}


def gradients(module: nn.Module, rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {f"grad.{rename(name)}": parameter.grad for name, parameter in module.named_parameters()}


CASES = {
    "region_matmul": region_matmul,
    "layer": layer,
    "paper_layer": paper_layer,
    "shuffle_block": shuffle_block,
    "tiny_shufflenet": tiny_shufflenet,
}
