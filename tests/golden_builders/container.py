"""Builders of the recorded CONTAINER cases, and of SMCA's head, which came with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

import models.backbones  # noqa: F401  registers our networks with timm
from models.backbones.container import ContainerBlock, PatchEmbed
from models.backbones.container_pam import PAMAttention
from models.detectors.matching import assign, match_costs
from models.detectors.set_criterion import SetTarget
from models.detectors.smca import SMCA
from models.layers.context_aggregation import ContextAggregation
from models.official import load, smca
from models.official.container import LAYOUT

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5

# Where a block alone is put, so that the layout knows its names.
THEIRS, OURS = "blocks1.0.", "stages.0.blocks.0."


def patch_embed(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = PatchEmbed(config["in_chans"], config["embed_dim"], config["patch_size"])
    network.load_state_dict(case.state)
    return {"out.y": network(case.inputs["x"])}


def block(case: Case) -> dict[str, Tensor]:
    config, x = case.config, case.inputs["x"].requires_grad_()
    dynamic = "sa_weight" in case.state
    network = ContainerBlock(config["dim"], config["mlp_ratio"], num_heads=config["num_heads"], dynamic=dynamic)
    network.load_state_dict(
        {LAYOUT.our_name(THEIRS + name).removeprefix(OURS): value for name, value in case.state.items()}
    )
    evaluated = network.eval()(x)
    trained = network.train()(x)
    loss = (trained * case.inputs["loss_weight"]).sum()
    loss.backward()
    gradients = {
        f"grad.{LAYOUT.official_name(OURS + name).removeprefix(THEIRS)}": parameter.grad
        for name, parameter in network.named_parameters()
    }
    return {
        "out.y_eval": evaluated,
        "out.y_train": trained,
        "out.loss": loss,
        "out.grad_x": x.grad,
        **{f"out.after.{name}": value for name, value in network.named_buffers()},
        **gradients,
    }


def model(case: Case) -> dict[str, Tensor]:
    config, x = case.config, case.inputs["x"]
    network: Any = timm.create_model(
        "container",
        dims=config["embed_dim"],
        depths=config["depth"],
        patch_sizes=config["patch_size"],
        mlp_ratios=config["mlp_ratio"],
        num_heads=config["num_heads"],
        dynamic=[f"blocks{stage + 1}.0.sa_weight" in case.state for stage in range(len(config["depth"]))],
        num_classes=config["num_classes"],
    )
    load(network, LAYOUT.to_ours(case.state))
    network.eval()
    results = {"out.final_norm": network.forward_features(x), "out.logits_eval": network(x)}
    y = network.stem(x)
    for i, stage in enumerate(network.stages):
        y = results[f"out.stage{i + 1}"] = stage(y)
    logits = network.train()(x)
    loss = SoftTargetCrossEntropy()(logits, case.inputs["target"])
    loss.backward()
    buffers = dict(network.named_buffers())
    gradients = LAYOUT.to_official({name: parameter.grad for name, parameter in network.named_parameters()} | buffers)
    after = LAYOUT.to_official(network.state_dict())
    return {
        **results,
        "out.logits_train": logits,
        "out.loss": loss,
        **{f"out.after.{name}": value for name, value in after.items()},
        **{f"grad.{name}": value for name, value in gradients.items()},
    }


def pam_attention(case: Case) -> dict[str, Tensor]:
    config, x = case.config, case.inputs["x"].requires_grad_()
    network = PAMAttention(config["dim"], config["num_heads"], config["tokens"], qkv_bias=config["qkv_bias"])
    network.load_state_dict(case.state)
    y = network(x)
    loss = (y * case.inputs["loss_weight"]).sum()
    loss.backward()
    gradients = {f"grad.{name}": parameter.grad for name, parameter in network.named_parameters()}
    return {"out.y": y, "out.loss": loss, "out.grad_x": x.grad, **gradients}


def affinity_formula(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    heads, height, width = config["heads"], config["H"], config["W"]
    x = inputs["x"].mT.unflatten(-1, (height, width))

    def layer(static: Any, dynamic: bool = True, **options: Any) -> ContextAggregation:
        """One of the family with the recorded weights; `weight` is the static affinity's, `parameter` the mixture's."""
        weight, mixing = options.pop("weight", None), options.pop("parameter", None)
        network = ContextAggregation(
            config["dim"], heads, static, dynamic, kernel_size=config["kernel"], map_size=(height, width), **options
        )
        chans = config["dim"] * (3 if dynamic else 1)
        state = {
            "proj_in.weight": inputs["qkv_weight"][-chans:, :, None, None],
            "proj_in.bias": inputs["qkv_bias"][-chans:],
            "proj_out.weight": inputs["w2_weight"][:, :, None, None],
            "proj_out.bias": inputs["w2_bias"],
        }
        place = "mixing.static" if dynamic else "static"
        if weight is not None:
            state[f"{place}.weight"] = weight
        if static == "dw":
            # The formula has none.
            state[f"{place}.bias"] = torch.zeros(config["dim"])
        network.load_state_dict(state | (mixing or {}))
        return network

    def aggregated(static: Any, dynamic: bool = True, **options: Any) -> Tensor:
        return (x + layer(static, dynamic, **options)(x)).flatten(2).mT

    per_channel, per_head = inputs["kernel_channels"][:, None], inputs["kernel_heads"][:, None]
    eps = {"mixing.logit": torch.logit(inputs["eps"])[None]}
    scale = {"mixing.scale": torch.stack([inputs["alpha"], inputs["beta"]])}
    attention = layer("none")
    query, key, value = attention.heads(attention.proj_in(x))
    # What makes of each position's indicator the column of a matrix: one channel a head, one image a position.
    positions = torch.eye(height * width, dtype=value.dtype)
    local = layer("mh_dw", dynamic=False, weight=per_head).static
    assert isinstance(local, nn.Module)
    indicators = positions.unflatten(1, (height, width))[:, None].expand(-1, heads, -1, -1)
    every = positions.expand(len(x), heads, -1, -1)
    return {
        "out.A_dw_heads": local(indicators).flatten(2).permute(1, 2, 0),
        "out.A_dynamic": F.scaled_dot_product_attention(query, key, every),
        "out.y_attention": aggregated("none"),
        "out.y_depthwise": aggregated("dw", dynamic=False, weight=per_channel),
        "out.y_mh_dw": aggregated("mh_dw", dynamic=False, weight=per_head),
        "out.y_mlp_mixer": aggregated("mlp", dynamic=False, weight=inputs["A_mlp_single"]),
        "out.y_mh_mlp": aggregated("mh_mlp", dynamic=False, weight=inputs["A_mlp_heads"]),
        "out.y_container_alpha_beta": aggregated("mh_dw", mixing="scales", weight=per_head, parameter=scale),
        "out.y_container_eps_dwc": aggregated("dw", weight=per_channel, parameter=eps),
        "out.y_pam_eps": aggregated("mh_mlp", weight=inputs["A_mlp_heads"], parameter=eps),
    }


class Given(nn.Module):
    """In place of a backbone: the recorded map."""

    strides = (32,)

    def __init__(self, features: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.features = features
        self.mask = mask

    def forward(self, images: Tensor, padding: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(self.features, self.mask)]


def smca_detr_head(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    network = SMCA(
        num_queries=config["q"],
        gaussian_scale=config["scale"],
        smooth=config.get("smooth", 8.0),
        num_heads=config.get("nheads", 8),
        backbone="plain_conv",
        frozen_stages=0,
        num_classes=config["ncls"],
        hidden_dim=config["d"],
        feedforward_dim=config["ff"],
        encoder_layers=config["enc"],
        decoder_layers=config["dec"],
        dropout=0.0,
    )
    features = inputs["features"]
    network.backbone = Given(features, inputs["mask"].bool())  # type: ignore[assignment]
    network.input_proj = nn.Conv2d(config["C"], config["d"], 1)
    network.position = lambda padding: inputs["pos"]  # type: ignore[method-assign]
    network.load_state_dict({smca.LAYOUT.our_name(name): value for name, value in case.state.items()})

    rows, columns = (side * Given.strides[-1] for side in features.shape[-2:])
    sizes = inputs["sizes_hw"]
    inside = [(torch.arange(side) < sizes[:, i, None]) for i, side in enumerate((rows, columns))]
    padding = ~(inside[0][:, :, None] & inside[1][:, None, :])
    decoded = network.decode(network.encode(features.new_zeros(len(features), 3, rows, columns), padding))
    found = network.predictions(decoded, all_layers=True)
    targets = [SetTarget(inputs[f"labels{i}"], inputs[f"boxes{i}"]) for i in range(len(features))]
    terms = network.criterion(found, targets)
    total = torch.stack(list(terms.values())).sum()
    total.backward()

    results = {"out.loss_total": total}
    last = len(found.logits) - 1
    for i in range(last + 1):
        prefix = "out." if i == last else f"out.aux{i}."
        results |= {f"{prefix}pred_logits": found.logits[i], f"{prefix}pred_boxes": found.boxes[i]}
    weights = network.criterion.weights
    published = {"ce": ("loss_ce", weights.ce), "l1": ("loss_bbox", weights.l1), "giou": ("loss_giou", weights.giou)}
    for name, value in terms.items():
        kind, _, layer = name.partition("_")
        title, weight = published[kind]
        results["_".join(filter(None, [f"out.loss.{title}", layer]))] = value / weight
    cost = match_costs(
        found.logits[-1:],
        found.boxes[-1:],
        [target.labels for target in targets],
        [target.boxes for target in targets],
        network.criterion.classification,
        network.criterion.costs,
    )
    counts = [len(target.labels) for target in targets]
    match = assign({"decoder": cost}, counts)["decoder"]
    for i in range(len(targets)):
        mine = match.images == i
        results[f"out.match{i}"] = torch.stack([match.queries[0, mine], match.targets[0, mine] - sum(counts[:i])])
    return results | {
        f"grad.{smca.LAYOUT.official_name(name)}": parameter.grad for name, parameter in network.named_parameters()
    }


CASES = {
    "patch_embed": patch_embed,
    "cblock": block,
    "mixblock": block,
    "light_model": model,
    "full_model": model,
    "pam_attention": pam_attention,
    "affinity_formula": affinity_formula,
    "smca_detr_head": smca_detr_head,
}
