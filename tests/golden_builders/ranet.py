"""Builders of the recorded RANet cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.classifiers.ranet import RANet
from models.classifiers.ranet_blocks import Bottleneck, DenseBlock, FusionBlock, features
from models.official import load
from models.official.ranet import LAYOUT
from tests.golden_builders.adaptive_inference import threshold_search

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def conv_bn(case: Case) -> dict[str, Tensor]:
    config = case.config
    stride = {"normal": 1, "down": 2}[config["type"]]
    network = Bottleneck(config["nIn"], config["nOut"], config["bnWidth"], stride, not config["bnAfter"])
    network.load_state_dict({name.removeprefix("net."): value for name, value in case.state.items()})
    evaluated = network.eval()(case.inputs["x"])
    trained = network.train()(case.inputs["x"])
    (trained * case.inputs["ct"]).sum().backward()
    gradients = {f"grad.net.{name}": parameter.grad for name, parameter in network.named_parameters()}
    return {"out.y_eval": evaluated, "out.y_train": trained} | gradients


def block_normal(case: Case) -> dict[str, Tensor]:
    config = case.config
    reduction = config["reduction_rate"] if config["trans"] else None
    network = DenseBlock(config["nIn"], config["num_layers"], config["growth_rate"], config["bnFactor"], reduction)
    return block_results(network, case, [case.inputs["x"]])


def block_fusion(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = FusionBlock(
        config["nIn"],
        config["nIn_lowFtrs"],
        config["growth_rate"],
        factor=config["bnFactor1"],
        low_factor=config["bnFactor2"],
        compress=config["compress_factor"],
        down=config["down"],
        reduction=config["reduction_rate"] if config["trans"] else None,
    )
    low = [case.inputs[f"low{layer}"] for layer in range(config["num_layers"] + 1)]
    return block_results(network, case, [case.inputs["x"], low])


def block_results(network: DenseBlock | FusionBlock, case: Case, inputs: list[Any]) -> dict[str, Tensor]:
    official, ours = "scale_flows.0.0.", "subnets.0.0."
    network.load_state_dict(
        {LAYOUT.our_name(official + name).removeprefix(ours): value for name, value in case.state.items()}
    )
    evaluated, maps = network.eval()(*inputs)
    trained, _ = network.train()(*inputs)
    (trained * case.inputs["ct"]).sum().backward()
    emitted = features(maps, network.feature_chans)
    return {
        "out.y_eval": evaluated,
        "out.y_train": trained,
        **{f"out.feat{i}": value for i, value in enumerate(emitted)},
        **{
            f"grad.{LAYOUT.official_name(ours + name).removeprefix(official)}": parameter.grad
            for name, parameter in network.named_parameters()
        },
    }


def build(config: dict[str, Any]) -> RANet:
    """Our network for the constructor arguments of the published one."""
    imagenet = config["data"].lower() == "imagenet"
    return RANet(
        num_classes=config["num_classes"],
        stem="imagenet" if imagenet else "cifar",
        num_channels=config["nChannels"],
        growth_rate=config["growthRate"],
        growth_factors=config["grFactor"],
        bottleneck_factors=config["bnFactor"],
        scales=config["scale_list"],
        num_blocks=config["nBlocks"],
        block_step=config["block_step"],
        step=config["step"],
        step_mode=config["stepmode"],
        reduction=config["reduction"],
        compress=config["compress_factor"],
        head_width=None if imagenet else config["head_width"],
    )


def net(case: Case) -> dict[str, Tensor]:
    network = build(case.config)
    load(network, LAYOUT.to_ours(case.state))
    images = case.inputs["x"]
    base = network.eval().base_features(images)
    evaluated = network(images)
    trained = network.train()(images)
    loss = torch.stack([F.cross_entropy(logits, case.inputs["target"]) for logits in trained]).sum()
    loss.backward()
    results = {"out.loss_train": loss}
    results |= {f"out.base_shape{i}": torch.tensor(x.shape) for i, x in enumerate(base, 1)}
    results |= {f"out.logits_eval_exit{i}": logits for i, logits in enumerate(evaluated, 1)}
    results |= {f"out.logits_train_exit{i}": logits for i, logits in enumerate(trained, 1)}
    return results | {f"grad.{LAYOUT.official_name(name)}": p.grad for name, p in network.named_parameters()}


CASES = {
    "conv_bn": conv_bn,
    "block_normal": block_normal,
    "block_fusion": block_fusion,
    "block_fusion_down_trans": block_fusion,
    "tiny_cifar": net,
    "tiny_imagenet": net,
    "dynamic_eval": threshold_search,
}
