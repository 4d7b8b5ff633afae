"""Builders of the recorded ConvNeXt cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import timm
import torch
from timm.layers import LayerNorm, LayerNorm2d
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from lightning_modules.parameter_groups import LayerDecay, parameter_groups
from lightning_modules.schedules import WarmupCosine
from models.backbones.convnext_dense import ConvNeXtDense
from models.official import load
from models.official.convnext import LAYOUT

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5

# The cosine of the published schedule ends at this unless told otherwise.
MIN_LR = 1e-6


def layernorm(case: Case) -> dict[str, Tensor]:
    config = case.config
    first, last = LayerNorm2d(config["dim"], eps=config["eps"]), LayerNorm(config["dim"], eps=config["eps"])
    first.load_state_dict(case.state)
    last.load_state_dict(case.state)
    out = first(case.inputs["x_channels_first"])
    (out * case.inputs["cot_channels_first"]).sum().backward()
    return {
        "out.channels_first": out,
        "out.channels_last": last(case.inputs["x_channels_last"]),
        "grad.weight": first.weight.grad,
        "grad.bias": first.bias.grad,
    }


def block(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = ConvNeXtBlock(
        config["dim"], drop_path=config["drop_path"], ls_init_value=config["layer_scale_init_value"] or None
    )
    inside = "stages.0.blocks.0."
    network.load_state_dict(
        {LAYOUT.our_name(f"stages.0.0.{name}").removeprefix(inside): value for name, value in case.state.items()}
    )
    evaluated = network.eval()(case.inputs["x"])

    def recorded_draws(tensor: Tensor, probability: float) -> Tensor:
        assert abs(probability - (1 - config["drop_path"])) < 1e-12
        return tensor.copy_(case.inputs["keep"].reshape(tensor.shape))

    with patch.object(Tensor, "bernoulli_", recorded_draws):
        trained = network.train()(case.inputs["x"])
    (trained * case.inputs["cot"]).sum().backward()
    gradients = {
        f"grad.{LAYOUT.official_name(inside + name).removeprefix('stages.0.0.')}": parameter.grad
        for name, parameter in network.named_parameters()
    }
    return {"out.eval": evaluated, "out.train": trained} | gradients


def convnext(config: dict[str, Any], **changes: Any) -> ConvNeXt:
    """timm's network for the constructor arguments of the published one."""
    arguments = dict(config)
    if "layer_scale_init_value" in arguments:
        arguments["ls_init_value"] = arguments.pop("layer_scale_init_value") or None
    return timm.create_model("convnext_tiny", **arguments | changes)


def model(case: Case) -> dict[str, Tensor]:
    network = convnext(case.config["model"]).eval()
    load(network, LAYOUT.to_ours(case.state))
    results = {}
    x = network.stem(case.inputs["x"])
    for i, stage in enumerate(network.stages):
        x = x if i == 0 else stage.downsample(x)
        results[f"out.downsample{i}"] = x
        x = results[f"out.stage{i}"] = stage.blocks(x)
    logits = network(case.inputs["x"])
    loss = SoftTargetCrossEntropy()(logits, case.inputs["target_soft"])
    loss.backward()
    gradients = LAYOUT.to_official({name: parameter.grad for name, parameter in network.named_parameters()})
    return {
        **results,
        "out.features": network.forward_head(x, pre_logits=True),
        "out.logits": logits,
        "out.loss_soft": loss,
        "out.loss_smooth": LabelSmoothingCrossEntropy(0.1)(logits, case.inputs["target"]),
        **{f"grad.{name}": value for name, value in gradients.items()},
    }


def isotropic(case: Case) -> dict[str, Tensor]:
    config = dict(case.config["model"])
    config["ls_init_value"] = config.pop("layer_scale_init_value", 0)
    network = timm.create_model("convnext_isotropic_small", **config).eval()
    load(network, LAYOUT.to_ours(case.state))
    features = network.forward_head(network.forward_features(case.inputs["x"]), pre_logits=True)
    return {
        "out.stem": network.stem(case.inputs["x"]),
        "out.features": features,
        "out.logits": network(case.inputs["x"]),
    }


def dense_backbone(case: Case) -> dict[str, Tensor]:
    config = dict(case.config["model"])
    indices = config.pop("out_indices", [0, 1, 2, 3])
    network = ConvNeXtDense(convnext(config, num_classes=0), indices).eval()
    load(network, LAYOUT.to_ours(case.state))
    return {f"out.c{i}": features for i, features in zip(indices, network(case.inputs["x"]), strict=True)}


def layer_decay_groups(case: Case) -> dict[str, Tensor]:
    config = case.config
    names = [LAYOUT.our_name(name) for name in config["names"]]
    dimensions = dict(zip(names, case.inputs["shape_dims"].tolist(), strict=True))

    def rows(key: str, decay: LayerDecay) -> tuple[Tensor, int]:
        network = named_parameters(dimensions, decay.prefix)
        groups = parameter_groups(network, 1.0, config["weight_decay"], decay)
        if key == "id":
            ids, _ = decay.layer_ids(network)
            values: dict[str, float] = dict(ids)
        else:
            values = {name: group[key] for group in groups for name in group["param_names"]}
        start = f"{decay.prefix}." if decay.prefix else ""
        dtype = torch.int64 if key == "id" else torch.float32
        return torch.tensor([values[start + name] for name in names], dtype=dtype), len(groups)

    classify = LayerDecay(config["layer_decay"], "convnext_layer_wise")
    layer_wise = LayerDecay(config["det_decay"], "convnext_layer_wise", config["det_num_layers"], "backbone")
    stage_wise = LayerDecay(config["det_decay"], "convnext_stage_wise", config["det_num_layers"], "backbone")
    decays, groups = rows("weight_decay", classify)
    return {
        "out.layer_id": rows("id", classify)[0],
        "out.lr_scale": rows("lr_scale", classify)[0],
        "out.weight_decay": decays,
        "out.num_groups": torch.tensor([groups]),
        "out.det_layer_wise_id": rows("id", layer_wise)[0],
        "out.det_layer_wise_scale": rows("lr_scale", layer_wise)[0],
        "out.det_stage_wise_id": rows("id", stage_wise)[0],
        "out.det_stage_wise_scale": rows("lr_scale", stage_wise)[0],
    }


def named_parameters(dimensions: dict[str, int], prefix: str) -> nn.Module:
    """A module that has nothing but parameters of these names and numbers of dimensions."""
    root = nn.Module()
    for name, count in dimensions.items():
        *path, leaf = [*([prefix] if prefix else []), *name.split(".")]
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(torch.ones([1] * count)))
    return root


def lr_schedule(case: Case) -> dict[str, Tensor]:
    config = case.config
    steps = config["epochs"] * config["niter"]
    warmup_steps = config["warmup_steps"] if config["warmup_steps"] > 0 and config["warmup_epochs"] > 0 else None
    learning = WarmupCosine(config["warmup_epochs"], warmup_steps, config["min_lr"])
    results = {"out.lr": learning.table(config["lr"], config["niter"], steps)}
    if config.get("wd_end") is not None:
        results["out.wd"] = WarmupCosine(min_lr=config["wd_end"]).table(config["wd"], config["niter"], steps)
    return {name: torch.from_numpy(table).float() for name, table in results.items()}


def train_steps(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = convnext(config["model"]).train()
    load(network, LAYOUT.to_ours(case.state))
    total = case.shapes["out.lr"][0]
    schedule = WarmupCosine(warmup_steps=config["warmup_steps"], min_lr=config.get("min_lr", MIN_LR))
    table = schedule.table(config["lr"], steps_per_epoch=total, total_steps=total)
    decay = LayerDecay(config["layer_decay"], "convnext_layer_wise") if config["layer_decay"] < 1 else None
    groups = parameter_groups(network, config["lr"], config["weight_decay"], decay)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    # The scheduler asks for one value more than there are steps.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: table[min(step, total - 1)] / config["lr"])
    average = AveragedModel(network, avg_fn=get_ema_avg_fn(config["ema_decay"]), use_buffers=True)
    # An averaged model takes its first update as a copy; the published one starts as a copy of the initial weights.
    average.update_parameters(network)

    accumulated = config["update_freq"]
    images = micro_batches(case.inputs["x"], 4, config["steps"], accumulated)
    targets = micro_batches(case.inputs["target_soft"], 2, config["steps"], accumulated)
    losses = []
    for step in range(config["steps"]):
        optimizer.zero_grad()
        for micro in range(accumulated):
            loss = SoftTargetCrossEntropy()(network(images[step][micro]), targets[step][micro])
            (loss / accumulated).backward()
            losses.append(loss.detach())
        optimizer.step()
        scheduler.step()
        average.update_parameters(network)
    loss_table = torch.stack(losses)
    if case.shapes["out.loss"][0] != len(losses):
        loss_table = loss_table.reshape(config["steps"], accumulated).mean(1)
    parameters, averaged = (LAYOUT.to_official(state) for state in (network.state_dict(), average.module.state_dict()))
    return {
        "out.lr": torch.from_numpy(table).float(),
        "out.loss": loss_table,
        **{f"out.param.{name}": value for name, value in parameters.items()},
        **{f"out.ema.{name}": value for name, value in averaged.items()},
    }


def micro_batches(recorded: Tensor, batch_ndim: int, steps: int, accumulated: int) -> list[list[Tensor]]:
    """Recorded batches as [step][micro-batch], whether they lie in a row, by step, or as one batch a step."""
    if recorded.ndim == batch_ndim + 1:
        in_a_row = recorded.shape[0] == steps * accumulated
        recorded = recorded.unflatten(0, (steps, accumulated)) if in_a_row else recorded.unflatten(1, (accumulated, -1))
    return [list(step) for step in recorded]


CASES = {
    "layernorm": layernorm,
    "block": block,
    "block_no_layerscale": block,
    "model": model,
    "isotropic": isotropic,
    "dense_backbone": dense_backbone,
    "layer_decay_groups": layer_decay_groups,
    "lr_schedule": lr_schedule,
    "train_steps": train_steps,
}
