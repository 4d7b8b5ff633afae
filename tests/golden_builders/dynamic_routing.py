"""Builders of the recorded Dynamic Routing cases."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.compute_budget import ComputeBudget, budget_penalty
from datamodules import Pixels
from lightning_modules.schedules import Poly
from models.compute import parameter_count
from models.decisions import noted
from models.layers.soft_gate import all_closed, soft_gate
from models.official import load
from models.official.dynamic_routing import LAYOUT
from models.segmenters.dynamic_routing import DynamicRouting
from models.segmenters.dynamic_routing_cell import Cell
from models.segmenters.dynamic_routing_flops import cell_costs, decoder_flops, gate_cost, paper_flops, stem_flops

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 2e-5
MEGA = 1e6
# Where a cell's keys are in a whole network.
CELL, OUR_CELL = "backbone.all_cell_list.0.1.", "layers.1.1."


def gate(case: Case) -> dict[str, Tensor]:
    x = case.inputs["x"]
    updated = x.lerp(case.inputs["x_target"], case.config["momentum"])
    return {"out.y": soft_gate(x), "out.x_updated": updated, "out.y_momentum": soft_gate(updated)}


def in_cell(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Official weights of a cell by our name within it."""
    return {LAYOUT.our_name(f"{CELL}{prefix}{name}").removeprefix(OUR_CELL): value for name, value in state.items()}


def mixed_op(case: Case) -> dict[str, Tensor]:
    chans, (height, width) = case.config["C"], case.config["hw"]
    # The only combination that a published configuration has.
    assert case.config["cell_type"] == ["sep_conv_3x3", "skip_connect"]
    body = Cell(chans, ["keep"], gated=False).body
    body.load_state_dict({k.removeprefix("body."): v for k, v in in_cell(case.state, "cell_ops.").items()})
    x = case.inputs["x"]
    flops = height * width * cell_costs(chans, elementwise=True)["body"]
    return {"out.y": body.eval()(x) + x, "out.mflops": torch.tensor(flops / MEGA)}


def cell(case: Case) -> dict[str, Tensor]:
    config = case.config
    chans, pixels = config["C"], config["hw"][0] * config["hw"][1]
    transforms = ["keep", *["up"] * config["allow_up"], *["down"] * config["allow_down"]]
    network = Cell(chans, transforms, small_gate=config["small_gate"])
    network.load_state_dict(in_cell(case.state))
    assert network.gate is not None
    costs = {name: value * pixels / MEGA for name, value in cell_costs(chans, elementwise=True).items()}
    gating = gate_cost(chans, len(transforms), pixels, config["small_gate"]) / MEGA
    results = {"out.meta.cell_mflops": torch.tensor(costs["body"]), "out.meta.gate_mflops": torch.tensor(gating)}
    results |= {f"out.meta.{transform}_mflops": torch.tensor(costs[transform]) for transform in transforms}

    def run(prefix: str, only: list[int] | None = None) -> list[Tensor]:
        rows = range(len(case.inputs["h"])) if only is None else only
        x, real, expected = (case.inputs[name][list(rows)] for name in ("h", "flops_in_real", "flops_in_expt"))
        if network.training:
            outputs, gates = network(x)
        else:
            sent, gates = network.sparse(x, list(range(len(x))))
            outputs = {transform: torch.zeros_like(value) for transform, value in network(x)[0].items()}
            for part in sent:
                if part.maps is not None:
                    outputs[part.transform][part.images] += part.maps
        column = gates[:, :, None, None, None]
        opened, closed = column > 1e-4, all_closed(gates)[:, None, None, None]
        results[f"out.{prefix}.flops_expt"] = expected + column.amax(1) * costs["body"]
        results[f"out.{prefix}.flops_real"] = real + gating + ~closed * costs["body"]
        for i, transform in enumerate(transforms):
            weight = column[:, i] + closed if transform == "keep" else column[:, i]
            values = {
                "trans_flops_expt": column[:, i] * costs[transform],
                "trans_flops_real": opened[:, i] * costs[transform],
                # What the published cell says of a batch that it skips.
                "weight": column[:, i] if closed.all() and not network.training else weight,
                "h": outputs[transform],
            }
            for name, value in values.items():
                key = f"out.{prefix}.{name}_{transform}"
                results[key] = value.sum() if case.shapes[key] == torch.Size() else value
        return list(outputs.values())

    network.eval()
    logits = network.gate.logits(case.inputs["h"])[:, :, None, None]
    results["out.gate_logits"] = logits
    with torch.no_grad():
        run("eval")
        run("eval_off", [config["off_sample"]])
    network.train()
    outputs = run("train")
    loss = sum(output.square().mean() for output in outputs) + results["out.train.flops_expt"].mean()
    loss.backward()
    results["out.train.loss"] = loss
    return results | {
        f"grad.{LAYOUT.official_name(OUR_CELL + name).removeprefix(CELL)}": parameter.grad
        for name, parameter in network.named_parameters()
    }


def build(config: dict[str, Any]) -> DynamicRouting:
    """Our network for the constructor arguments of the published one."""
    return DynamicRouting(
        num_classes=config["num_classes"],
        num_layers=config["layer_num"],
        width=config["init_channel"],
        route="dynamic" if config.get("gate_on", True) else "all",
        small_gate=config.get("small_gate", False),
    )


def mflops(network: DynamicRouting, gates: Tensor, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Expected and real MFLOPs, the mean over the batch."""
    expected, real = paper_flops(network, gates, config["fix_size"])
    return expected.mean() / MEGA, real.mean() / MEGA


def grid(case: Case) -> dict[str, Tensor]:
    network = build(case.config)
    state = {f"backbone.{name}": value for name, value in case.state.items() if "gate_weights" not in name}
    state = {LAYOUT.our_name(name): value for name, value in state.items()}
    rest = network.load_state_dict(state, strict=False)
    assert not rest.unexpected_keys
    assert all(name.startswith("decoder.") for name in rest.missing_keys)
    network.train(case.config["train"])
    maps, gates = network.features(case.inputs["image"])
    expected, real = mflops(network, gates, case.config)
    results = {"out.expt_mflops": expected, "out.real_mflops": real}
    results |= {f"out.layer_{level}": value for level, value in maps.items()}
    closed, unreached = 0, 0
    for layer, level, each in network.cells():
        paths = [i for i, name in enumerate(("keep", "up", "down")) if name in each.transforms]
        own = gates[:, layer, level, paths]
        results[f"out.gate_L{layer - 1}_C{level}" if layer else "out.gate_init"] = own
        closed += int(all_closed(own).all())
    if case.config["train"]:
        loss = sum(value.square().mean() for value in maps.values()) + 0.01 * expected
        loss.backward()
        results["out.loss"] = loss
        for name, parameter in network.named_parameters():
            results[f"grad.{LAYOUT.official_name(name).removeprefix('backbone.')}"] = parameter.grad
        closed = 0
    else:
        unreached = without_input(network, gates)
    return results | {
        "out.n_cells_off": torch.tensor(closed - unreached),
        "out.n_cells_without_input": torch.tensor(unreached),
    }


def without_input(network: DynamicRouting, gates: Tensor) -> int:
    """Cells that nothing reaches: no cell of theirs kept, and none beside it open."""
    levels, number = {0}, 0
    for layer in range(network.num_layers + 1):
        present = {k for other, k, _ in network.cells() if other == layer}
        number += len(present - levels)
        awake = {k for k in levels & present if not bool(all_closed(gates[:, layer, k]).all())}
        levels = levels | {k + 1 for k in awake} | {k - 1 for k in awake}
    return number


def normalised(case: Case) -> Tensor:
    """Recorded images, which are BGR, as our data modules normalise ours for such weights; here with another mean."""
    pixels = Pixels.stated(LAYOUT.pixels_of(case.state))
    assert (pixels.order, pixels.scale, pixels.std) == ("bgr", 255.0, (1.0, 1.0, 1.0))
    return replace(pixels, mean=tuple(case.config["pixel_mean"])).normalised(case.inputs["image"].flip(1))


def model_eval(case: Case) -> dict[str, Tensor]:
    config, network = case.config, build(case.config)
    load(network, LAYOUT.to_ours(case.state))
    with torch.no_grad():
        logits = network.eval()(normalised(case))
    expected, real = mflops(network, noted(network)[""].values, config)
    # The published counter takes the map for a square.
    side = config["fix_size"][0]
    decoder = torch.tensor(decoder_flops(network.width, network.num_classes, (side, side)) / MEGA)
    return {
        "out.sem_seg": F.interpolate(logits, config["out_hw"], mode="bilinear", align_corners=False)[0],
        "out.expt_mflops": expected,
        "out.real_mflops": real + decoder,
        "out.decoder_mflops": decoder,
    }


def model_train(case: Case) -> dict[str, Tensor]:
    config, network = case.config, build(case.config)
    load(network, LAYOUT.to_ours(case.state))
    side = config["fix_size"][0]
    decoder = decoder_flops(network.width, network.num_classes, (side, side)) / MEGA
    results: dict[str, Tensor] = {}
    for i, progress in enumerate(config["step_rates"]):
        load(network, LAYOUT.to_ours(case.state))
        network.zero_grad()
        images = normalised(case)
        logits = network.train()(images)
        _, gates = network.features(images)
        segmentation = F.cross_entropy(logits, case.inputs["label"], ignore_index=255)
        expected, real = mflops(network, gates, config)
        setting = [config["loss_weight"], config["loss_mu"], config["flops_all"], config["unupdate_rate"]]
        loss_budget = budget(setting, progress, expected)
        total = segmentation + loss_budget
        total.backward()
        results |= {
            f"out.expt_mflops.{i}": expected,
            f"out.real_mflops.{i}": real + decoder,
            f"out.loss_sem_seg.{i}": segmentation,
            f"out.loss_budget.{i}": loss_budget,
        }
    results["out.loss_total"] = total
    return results | {f"grad.{LAYOUT.official_name(name)}": p.grad for name, p in network.named_parameters()}


def budget(setting: list[float], progress: float, expected: Tensor) -> Tensor:
    """The budget loss of a setting (weight, mu, FLOPs of everything, start), at a share of the training."""
    weight, target, everything, begin = setting
    # One epoch of many steps.
    steps = 10**6
    callback = ComputeBudget(target, weight, "squared", scope="dynamic", warmup_epochs=0.02, begin_epochs=begin)
    trainer: Any = SimpleNamespace(
        num_training_batches=steps, accumulate_grad_batches=1, global_step=round(progress * steps)
    )
    return callback.weight_at(trainer) * budget_penalty(expected / everything, target, "squared")


def budget_loss(case: Case) -> dict[str, Tensor]:
    costs = case.inputs["expt_mflops"]
    config = case.config
    table = [[budget(setting, rate, costs) for rate in config["step_rates"]] for setting in config["settings"]]
    return {"out.loss": torch.stack([torch.stack(rows) for rows in table])}


def flops_constants(case: Case) -> dict[str, Tensor]:
    config = case.config
    with torch.device("meta"):
        network = build(config)
    height, width = config["fix_size"]
    results = {
        "out.n_params": torch.tensor(parameter_count(network)),
        "out.stem": torch.tensor(stem_flops(network.stem_chans, network.width, (height, width)) / MEGA),
        "out.decoder": torch.tensor(decoder_flops(network.width, network.num_classes, (height, height)) / MEGA),
    }
    for layer, level, each in network.cells():
        # All levels are open from here on.
        if layer != 3:
            continue
        chans, pixels = network.width << level, height * width / (16 << 2 * level)
        costs = {name: value * pixels for name, value in cell_costs(chans, elementwise=True).items()}
        costs["gate"] = gate_cost(chans, len(each.transforms), pixels, config["small_gate"])
        for name, value in costs.items():
            key = f"out.level{level}.{'cell' if name == 'body' else name}"
            results[key] = torch.tensor(value / MEGA)
    return results


def poly_lr(case: Case) -> dict[str, Tensor]:
    config = case.config
    schedule = Poly(config["power"], warmup_steps=config["warmup_iters"], warmup_factor=config["warmup_factor"])
    table = schedule.table(config["base_lr"], config["max_iter"], config["max_iter"])
    return {"out.lr": torch.from_numpy(table[case.inputs["iters"].numpy()])}


CASES = {
    "soft_gate": gate,
    "mixed_op": mixed_op,
    "cell_gate3": cell,
    "cell_gate2_down": cell,
    "cell_small_gate": cell,
    "grid_eval": grid,
    "grid_small_gate": grid,
    "grid_fix": grid,
    "grid_train": grid,
    "model_eval": model_eval,
    "model_train": model_train,
    "budget_loss": budget_loss,
    "flops_constants": flops_constants,
    "poly_lr": poly_lr,
}
