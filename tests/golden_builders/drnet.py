"""Builders of the recorded DRNet cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck, ResNet, downsample_conv
from torch import Tensor, nn

from callbacks.compute_budget import budget_penalty
from models.classifiers.drnet import DRNet, ResolutionPredictor, mix
from models.layers.gumbel import gumbel_noise, straight_through
from models.layers.resize import resize
from models.layers.resolution_bn import ResolutionBatchNorm, swap_batch_norms, use_set
from models.official import load
from models.official.drnet import LAYOUT

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-4


def resized(case: Case) -> dict[str, Tensor]:
    sizes = [tuple(size) for size in case.config["sizes"]]
    return {f"out.y_{h}x{w}": resize(case.inputs["x"], (h, w), "official") for h, w in sizes}


def predictor(case: Case) -> dict[str, Tensor]:
    network = ResolutionPredictor(case.config["num_candidates"], case.config["predictor_widths"]).eval()
    load(network, LAYOUT.to_ours(case.state))
    return {"out.scores": network(case.inputs["x"])}


def resnet(config: dict[str, Any]) -> ResNet:
    """timm's ResNet of bottlenecks, with a stem of any width, which its constructor does not offer."""
    stem, widths = config["stem_width"], config["classifier_widths"]
    inner = tuple(width // Bottleneck.expansion for width in widths)
    host = ResNet(Bottleneck, config["classifier_layers"], config["num_classes"], channels=inner)
    host.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
    host.bn1 = nn.BatchNorm2d(stem)
    host.layer1[0].conv1 = nn.Conv2d(stem, inner[0], 1, bias=False)
    host.layer1[0].downsample = downsample_conv(stem, widths[0], 1) if stem != widths[0] else None
    return host


def num_sets(state: dict[str, Tensor]) -> int:
    return 1 + max(
        int(part.removeprefix("bn_")) for name in state for part in name.split(".") if part.startswith("bn_")
    )


def classifier(case: Case) -> dict[str, Tensor]:
    host, sets = resnet(case.config).eval(), num_sets(case.state)
    swap_batch_norms(host, sets, ("downsample",))
    load(host, LAYOUT.to_ours(case.state))
    results = {}
    for j in range(sets):
        use_set(host, j)
        results[f"out.logits_bn{j}"] = host(case.inputs["x"])
    return results


def resolution_bn(case: Case) -> dict[str, Tensor]:
    sets = num_sets(case.state)
    norm = ResolutionBatchNorm(nn.BatchNorm2d(case.config["channels"]), sets)
    norm.load_state_dict({our_name_in_norm(name): value for name, value in case.state.items()}, strict=False)
    results = {}
    norm.eval()
    for j in range(sets):
        use_set(norm, j)
        results[f"out.eval_bn{j}"] = norm(case.inputs["x"])
    norm.train()
    trained = [int(name.removeprefix("out.train_bn")) for name in case.shapes if name.startswith("out.train_bn")]
    for j in trained:
        use_set(norm, j)
        results[f"out.train_bn{j}"] = norm(case.inputs["x"])
    state, after = norm.state_dict(), [name for name in case.shapes if "after" in name]
    return results | {name: state[our_name_in_norm(name.removeprefix("out.after."))] for name in after}


def our_name_in_norm(name: str) -> str:
    return LAYOUT.our_name(f"bn1.{name}").removeprefix("bn1.")


def gumbel(case: Case) -> dict[str, Tensor]:
    noise = gumbel_noise(case.inputs["uniform"])
    one_hot, soft = straight_through(case.inputs["scores"], noise, case.config.get("tau", 1.0))
    return {"out.noise": noise, "out.soft": soft, "out.one_hot": one_hot}


def pipeline(case: Case) -> dict[str, Tensor]:
    config, images = case.config, case.inputs["x"]
    network = DRNet(
        resnet(config),
        ResolutionPredictor(config["num_candidates"], config["predictor_widths"]),
        candidates=[tuple(size) for size in config["candidates"]],
        predictor_size=tuple(config["predictor_size"]),
        inference="gumbel",
        shortcut_bn="first",
        resize_mode="official",
    ).eval()
    load(network, LAYOUT.to_ours(case.state))
    seen = {}
    hooks = [
        network.predictor.register_forward_hook(lambda _, __, scores: seen.update({"out.scores": scores})),
        network.selection.register_forward_hook(lambda _, __, picked: seen.update({"out.one_hot": picked})),
    ]
    with patch.object(torch, "rand_like", lambda scores: case.inputs["uniform"].to(scores)):
        logits = network(images)
    for hook in hooks:
        hook.remove()
    network.inference = "argmax"
    choice = network._decide(seen["out.scores"]).argmax(1)
    every = {f"out.logits_candidate{j}": network.classify(images, j) for j in range(config["num_candidates"])}
    return {**seen, **every, "out.logits": logits, "out.choice_without_noise": choice}


def objective(case: Case) -> dict[str, Tensor]:
    config = case.config
    scores, logits = case.inputs["scores"].requires_grad_(), case.inputs["logits"].requires_grad_()
    costs = torch.tensor(config["flops_g"])
    dense, least = costs.max().item(), costs.min().item()
    noise = gumbel_noise(case.inputs["uniform"])
    picked, soft = straight_through(scores, noise, config["tau"])
    mixed = mix(logits, picked)
    mean = (picked @ costs).mean()
    regulariser = budget_penalty(mean / dense, config["alpha"] / dense, "hinge", span=1 - least / dense)
    cross_entropy = F.cross_entropy(mixed, case.inputs["target"])
    loss = cross_entropy + config["eta"] * regulariser
    loss.backward()
    return {
        "out.noise": noise,
        "out.soft": soft,
        "out.one_hot": picked,
        "out.logits": mixed,
        "out.mean_flops_g": mean,
        "out.loss_ce": cross_entropy,
        "out.loss_reg": regulariser,
        "out.loss": loss,
        "out.grad_scores": scores.grad,
        "out.grad_logits": logits.grad,
    }


CASES = {
    "resize": resized,
    "predictor": predictor,
    "classifier": classifier,
    "resolution_bn": resolution_bn,
    "gumbel": gumbel,
    "pipeline": pipeline,
    "objective": objective,
    "objective_below_target": objective,
}
