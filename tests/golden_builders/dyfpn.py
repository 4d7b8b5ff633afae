"""Builders of the recorded DyFPN: pyramids, gates, budget loss, and the whole detector."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from callbacks.compute_budget import budget_penalty
from models.compute import expected
from models.detectors.anchors import anchors, flatten_outputs
from models.detectors.conventions import CONVENTIONS
from models.detectors.rcnn import FasterRCNN
from models.detectors.roi_stage import BOX_SIZE
from models.detectors.rpn import CELLS
from models.layers.gumbel import straight_through
from models.necks import DyFPN, Extra, InceptionFPN
from models.necks.gates import ConvGate, RecurrentGates, SEGate
from models.official import dyfpn, load

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
EXTRA: dict[str, Extra] = {"on_input": "conv_on_backbone", "on_output": "conv_on_pyramid"}


def our_name(name: str) -> str:
    """An official name within the neck to ours."""
    ours = dyfpn.LAYOUT.our_name(f"neck.{name}").removeprefix("neck.")
    # The coarser levels, which the released detector pools.
    return re.sub(r"layer_blocks\.([45])\.0", lambda match: f"extra_blocks.p{int(match[1]) + 2}", ours)


def loaded(neck: nn.Module, state: dict[str, Tensor]) -> Any:
    own = {name: value for name, value in neck.state_dict().items() if name in ("offsets", "selection.temperature")}
    load(neck, {our_name(name): value for name, value in state.items()} | own)
    return neck


def neck_of(case: Case, structure: str, **options: Any) -> Any:
    config = case.config
    extra = EXTRA[config["add_extra_convs"]] if config.get("add_extra_convs") else "pool"
    options |= {"structure": structure, "eval_gate": "sample"}
    neck = DyFPN(config["in_channels"], config["out_channels"], extra, **options)
    assert neck.num_levels == config["num_outs"]
    return loaded(neck, case.state)


def many(case: Case, name: str) -> list[Tensor]:
    return [case.inputs[f"{name}.{i}"] for i in range(len(case.config["in_channels"]))]


def levels_and_gates(neck: Any, maps: list[Tensor], noise: list[Tensor], prefix: str = "") -> dict[str, Tensor]:
    results = {f"out.{prefix}P{i}": level for i, level in enumerate(neck(maps, noise), 2)}
    return results | {f"out.{prefix}gate.{i}": gate for i, gate in enumerate(neck.choose(neck.scores(maps), noise))}


@torch.no_grad()
def neck_eval(case: Case, structure: str) -> dict[str, Tensor]:
    neck, maps = neck_of(case, structure).eval(), many(case, "x")
    results = {f"out.logits.{i}": scores for i, scores in enumerate(neck.scores(maps))}
    patterns = {name.split(".")[1] for name in case.inputs if re.fullmatch(r"gumbel\.[a-z]\w*\.\d+", name)}
    for pattern in patterns:
        results |= levels_and_gates(neck, maps, many(case, f"gumbel.{pattern}"), f"{pattern}.")
    return results if patterns else results | levels_and_gates(neck, maps, many(case, "gumbel"))


def neck_train(case: Case, structure: str) -> dict[str, Tensor]:
    config = case.config
    costs = config.get("branch_costs") or [[0.0, cost] for cost in config["branch_cost_per_level"]]
    neck, maps, noise = neck_of(case, structure, costs=costs), many(case, "x"), many(case, "gumbel")
    for x in maps:
        x.requires_grad_()
    results = levels_and_gates(neck, maps, noise)
    task = sum((results[f"out.P{i + 2}"] * case.inputs[f"w.{i}"]).mean() for i in range(config["num_outs"]))
    compute = expected(neck, 0.0)
    largest = config["cost_max"]
    span = 1 - config["cost_min"] / largest
    # As `callbacks.ComputeBudget` takes it: of dynamic layers, over their range, by sample.
    assert abs(compute.least_macs / compute.dense_macs - (1 - span)) < 1e-6
    penalty = budget_penalty(compute.share, config["cost_target"] / largest, "squared", span)
    budget = config["lam"] * penalty.sum()
    total = task + budget
    total.backward()
    for i, (scores, draws) in enumerate(zip(neck.scores(maps), noise, strict=True)):
        results[f"out.soft.{i}"] = straight_through(scores, draws, config["tau"])[1]
    results |= {"out.task_loss": task, "out.flops_loss": budget.reshape(1), "out.total": total}
    results |= {f"grad.{kind}.{i}": x.grad for kind in ("x", "in.x") for i, x in enumerate(maps)}
    official = {our_name(name): name for name in case.state}
    return results | {f"grad.{official[n]}": p.grad for n, p in neck.named_parameters() if n in official}


@torch.no_grad()
def inception(case: Case, skip: bool) -> dict[str, Tensor]:
    neck = InceptionFPN(case.config["in_channels"], case.config["out_channels"], "pool", skip=skip)
    levels = loaded(neck, case.state).eval()(many(case, "x"))
    return {f"out.P{i}": level for i, level in enumerate(levels, 2)}


def gate(case: Case, kind: type[SEGate] | type[ConvGate]) -> dict[str, Tensor]:
    network = kind(case.config["channels"], case.config["n_out"])
    load(network, case.state)
    x = case.inputs["x"].requires_grad_()
    scores = network(x)
    hard, soft = straight_through(scores, case.inputs["gumbel"], case.config["tau"])
    loss = (case.inputs["w"] * hard).sum()
    loss.backward()
    gradients = {f"grad.{name}": parameter.grad for name, parameter in network.named_parameters()}
    return {"out.logits": scores, "out.gate": hard, "out.soft": soft, "out.loss": loss, "grad.x": x.grad} | gradients


@torch.no_grad()
def recurrent(case: Case, cell: str, upward: bool) -> dict[str, Tensor]:
    config = case.config
    gates = RecurrentGates(config["in_channels"], config["n_out"], cell, upward)
    load(gates, {our_name(name).removeprefix("gates."): value for name, value in case.state.items()})
    scores = gates(many(case, "x"))
    results = {f"out.logits.{i}": own for i, own in enumerate(scores)}
    for i, (own, draws) in enumerate(zip(scores, many(case, "gumbel"), strict=True)):
        results[f"out.gate.{i}"] = straight_through(own, draws, config["tau"])[0]
    return results


def flops_ce(case: Case) -> dict[str, Tensor]:
    """The published budget is a part of the classifier's loss; here both are terms of one sum."""
    inputs, config = case.inputs, case.config
    logits = inputs["logits"].requires_grad_()
    per_box = F.cross_entropy(logits, inputs["labels"], reduction="none") * inputs["weights"]
    loss = config["loss_weight"] * per_box.sum() / config["avg_factor"] + inputs["flops_loss"]
    loss.sum().backward()
    return {"out.loss": loss, "grad.logits": logits.grad}


@torch.no_grad()
def faster_rcnn(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    rpn, rcnn = config["rpn_test"], config["rcnn_test"]
    base = config["base_channels"]
    network = FasterRCNN(
        f"resnet{config['resnet_depth']}",
        config["num_classes"],
        options={"channels": [base * 2**stage for stage in range(4)], "stem_type": "deep", "stem_width": base // 2},
        neck=partial(DyFPN, eval_gate="sample"),
        fpn_chans=config["neck_channels"],
        fc_dim=config["fc"],
        convention=replace(
            CONVENTIONS["mmdet"],
            proposals_before=(rpn["nms_pre"], rpn["nms_pre"]),
            proposals_after=(rpn["nms_post"], rpn["nms_post"]),
            least_proposal=rpn["min_bbox_size"],
        ),
        score_threshold=rcnn["score_thr"],
        nms_threshold=rcnn["nms"],
        max_detections=rcnn["max_per_img"],
    ).eval()
    # timm's plain stem is always 64 channels wide.
    network.backbone.body["conv1"] = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)  # type: ignore[index]
    load(network, dyfpn.LAYOUT.to_ours(case.state))
    network.rpn.nms_threshold = rpn["nms_thr"]
    size = tuple(inputs["img_shape"].tolist())
    maps = [x for x, _ in network.backbone(inputs["image"], torch.zeros_like(inputs["image"][:, 0], dtype=torch.bool))]
    noise = [inputs[f"gumbel.{i}"] for i in range(len(maps))]
    scores = network.neck.scores(maps)
    results = {f"out.C{i}": x for i, x in enumerate(maps, 2)} | levels_and_gates(network.neck, maps, noise)
    results |= {f"out.gate_logits.{i}": own for i, own in enumerate(scores)}
    levels = network.neck(maps, noise)
    logits, deltas = network.rpn.head(levels)
    results |= {f"out.rpn_cls.{i}": value for i, value in enumerate(logits)}
    results |= {f"out.rpn_reg.{i}": value for i, value in enumerate(deltas)}
    boxes = anchors(levels, network.strides, [(CELLS * stride,) for stride in network.strides], network.convention)
    flat_logits = [flatten_outputs(level, 1).squeeze(-1) for level in logits]
    flat_deltas = [flatten_outputs(level, 4) for level in deltas]
    ((proposals, objectness),) = network.rpn.propose(flat_logits, flat_deltas, boxes, [size])
    results["out.proposals"] = torch.cat([proposals, objectness[:, None]], 1)
    (stage,) = network.stages()
    stage_logits, stage_deltas = stage.boxes_of(stage.pool(levels, [proposals], BOX_SIZE))
    results["out.box_cls"] = stage_logits.roll(-1, 1)
    results["out.box_reg"] = stage_deltas.flatten(1)
    (found,) = network.candidates(levels, [size], [proposals])
    results["out.det_boxes"] = torch.cat([found.boxes, found.scores[:, None]], 1)
    results["out.det_labels"] = found.labels
    return results


CASES = {
    "faster_rcnn_eval": faster_rcnn,
    "neck_b_eval": lambda case: neck_eval(case, "B"),
    "neck_b_eval_extra": lambda case: neck_eval(case, "B"),
    "neck_a_eval": lambda case: neck_eval(case, "A"),
    "neck_b_train": lambda case: neck_train(case, "B"),
    "neck_a_train": lambda case: neck_train(case, "A"),
    "inception_fpn": lambda case: inception(case, skip=False),
    "inception_fpn_skip": lambda case: inception(case, skip=True),
    "gate_se2": lambda case: gate(case, SEGate),
    "gate_se7": lambda case: gate(case, SEGate),
    "gate_conv2": lambda case: gate(case, ConvGate),
    **{
        f"{name}_{cell}_{direction}": lambda case, cell=cell, direction=direction: recurrent(
            case, cell, direction == "up"
        )
        for name in ("gate", "gate7")
        for cell in ("gru", "lstm")
        for direction in ("up", "down")
    },
    "flops_ce": flops_ce,
}
