"""Builders of the recorded cases of Dynamic Grained Encoders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn

import models.layers.grained
from callbacks.compute_budget import budget_penalty
from models.compute import expected, recorded
from models.layers.grained import Grain, GrainedBlock, Router
from models.layers.grained_regions import Regions
from models.layers.point_attention import PointAttention
from models.layers.pyramid_stage import PlainBlock
from models.layers.query_attention import QueryAttention, ReducedAttention
from models.official import load
from models.official.dge import LAYOUT

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
DEIT_BLOCK, PVT_BLOCK = "blocks.0.", "block1.0."


@contextmanager
def given_noise(*noises: Tensor) -> Iterator[None]:
    """Adds these to the scores of the routers, one router after another."""
    draws = iter(noises)

    def noise(uniform: Tensor) -> Tensor:
        return next(draws).to(uniform)

    with patch.object(models.layers.grained, "gumbel_noise", noise):
        yield


@contextmanager
def seen(network: nn.Module) -> Iterator[dict[str, list[Any]]]:
    """Collects what routers score, gates that are mixed or chosen by, and queries that blocks compute."""
    found: dict[str, list[Any]] = {"scores": [], "gates": [], "queries": [], "chosen": []}
    change, choose, straight = GrainedBlock._change, Regions.choose, models.layers.grained.straight_through

    def keep_change(self: GrainedBlock, queries: Tensor, *args: Any) -> Tensor:
        found["queries"].append(queries)
        return change(self, queries, *args)

    def keep_choice(self: Regions, choice: Tensor) -> Any:
        found["chosen"].append(choose(self, choice))
        return found["chosen"][-1]

    def keep_gate(scores: Tensor, noise: Any, temperature: float) -> Any:
        result = straight(scores, noise, temperature)
        if isinstance(noise, Tensor):
            found["gates"].append(result[0])
        return result

    hooks = [
        module.register_forward_hook(lambda _, __, scores: found["scores"].append(scores))
        for module in network.modules()
        if isinstance(module, Router)
    ]
    with (
        patch.object(GrainedBlock, "_change", keep_change),
        patch.object(Regions, "choose", keep_choice),
        patch.object(models.layers.grained, "straight_through", keep_gate),
    ):
        yield found
    for hook in hooks:
        hook.remove()


def patches(chosen: Any) -> Tensor:
    """Rows of image, row, column and side in tokens, as the published code tabulates queries."""
    regions, rows = chosen.regions, []
    for image, query in zip(chosen.ragged.image.tolist(), chosen.query.tolist(), strict=True):
        if query < regions.extra:
            rows.append([image, -1 - query, 0, 1])
            continue
        cells = [cells for cells in regions.cells if cells.start <= query][-1]
        row, column = divmod(query - cells.start, cells.columns)
        rows.append([image, row * cells.side, column * cells.side, cells.side])
    return torch.tensor(rows)


def pool_unpool(case: Case) -> dict[str, Tensor]:
    splits, size, results = case.config["split_sizes"], (case.config["H"], case.config["W"]), {}
    for extra in sorted({int(name[-1]) for name in case.inputs if name.startswith("x_extra")}):
        x = case.inputs[f"x_extra{extra}"]
        router = Router(x.shape[2], splits)
        router.gate.load_state_dict({part: case.inputs[f"router_{part}_extra{extra}"] for part in ("weight", "bias")})
        regions = Regions(size, splits, extra, x.device)
        pooled, means = regions.pool(x)
        scores = router(means)
        chosen = regions.choose(scores.argmax(3))
        change = case.inputs[f"delta_dense_extra{extra}"].unflatten(0, (len(x), -1))
        gate = torch.nn.functional.one_hot(scores.argmax(3), len(splits)).to(x)
        results |= {
            f"out.logits_extra{extra}": scores,
            f"out.queries_extra{extra}": chosen.rows(pooled),
            f"out.patches_extra{extra}": patches(chosen),
            f"out.lengths_extra{extra}": chosen.lengths,
            f"out.y_extra{extra}": x + chosen.unpool(case.inputs[f"delta_extra{extra}"]),
            f"out.queries_dense_extra{extra}": pooled.flatten(0, 1),
            f"out.y_dense_extra{extra}": x + regions.mixed(change, gate),
        }
    return results


def of_a_block(case: Case, prefix: str) -> tuple[dict[str, Tensor], str]:
    """Official weights of a block by our name within it, and our prefix."""
    state = LAYOUT.unpack({f"{prefix}{name}": value for name, value in case.state.items()})
    ours = {LAYOUT.our_name(name): value for name, value in state.items()}
    place = re.match(r"(stages\.\d+\.)?blocks\.\d+\.", next(iter(ours)))
    assert place is not None
    return {name.removeprefix(place[0]): value for name, value in ours.items()}, place[0]


def attention_of(config: dict[str, Any]) -> nn.Module:
    sizes = (config["dim"], config["num_heads"], config["qkv_bias"])
    return ReducedAttention(*sizes, config["sr_ratio"]) if "sr_ratio" in config else QueryAttention(*sizes)


def gradients(network: nn.Module, place: str = "") -> dict[str, Tensor]:
    """Gradients by official name."""
    ours = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    official = LAYOUT.pack({LAYOUT.official_name(f"{place}{name}"): value for name, value in ours.items()})
    begin = {"": "", "b": DEIT_BLOCK, "s": PVT_BLOCK}[place[:1]]
    return {f"grad.{name.removeprefix(begin)}": value for name, value in official.items()}


def block(case: Case, training: bool, sparse: bool = False) -> dict[str, Tensor]:
    config = case.config
    grain = Grain(tuple(config["split_sizes"]), sparse_train=sparse)
    network = GrainedBlock(config["dim"], attention_of(config), config["mlp_ratio"], 0.0, grain).train(training)
    state, place = of_a_block(case, PVT_BLOCK if "sr_ratio" in config else DEIT_BLOCK)
    network.load_state_dict(state)
    x = case.inputs["x"].requires_grad_(training)
    size, extra = (config["H"], config["W"]), config["extra_tokens"]
    regions = Regions(size, config["split_sizes"], extra, x.device)
    with seen(network) as found, given_noise(*([case.inputs["gumbel_noise"]] if training else [])):
        y = network(x, regions)
    compute = recorded(network)[""]
    chosen = found["chosen"][-1] if found["chosen"] else None
    queries = found["queries"][-1]
    results = {
        "out.y": y,
        "out.queries_pooled": queries.flatten(0, -2),
        "out.lengths": chosen.lengths if chosen else torch.full((len(x),), queries.shape[1]),
        "out.gate": found["gates"][-1].view_as(found["scores"][-1]) if training else found["scores"][-1],
        "out.complexity_dynamic": compute.expected,
        "out.complexity_static": torch.full((len(x),), compute.dense),
    }
    if not training:
        return results | {"out.patches": patches(chosen)}
    ratio = compute.expected.mean() / compute.dense
    penalty = budget_penalty(ratio, config["budget"], "squared")
    loss = (y * case.inputs["loss_weight"]).sum() + 100 * penalty
    loss.backward()
    results |= {"out.loss": loss, "out.budget_loss": penalty, "out.ratio": ratio, "out.grad_x": x.grad}
    return results | gradients(network, place)


def model_of(config: dict[str, Any], **options: Any) -> nn.Module:
    names = {
        "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "num_classes",
        "embed_dims", "mlp_ratios", "depths", "sr_ratios",
    }  # fmt: skip
    splits = config["split_sizes"]
    if "embed_dims" in config:
        assert all(each == splits[0] for each in splits)
        splits = splits[0]
    name = "pvt_dge_s124_tiny_256" if "embed_dims" in config else "deit_dge_s124_tiny_patch16_256"
    sizes = {key: value for key, value in config.items() if key in names}
    return timm.create_model(name, splits=tuple(splits), **sizes, **options)


def model(case: Case, training: bool) -> dict[str, Tensor]:
    network = model_of(case.config).train(training)
    load(network, LAYOUT.to_ours(case.state))
    noises = [case.inputs[f"gumbel_noise{i}"] for i in range(sum(name.startswith("gumbel") for name in case.inputs))]
    with seen(network) as found, given_noise(*noises):
        logits = network(case.inputs["x"])
    compute = expected(network, 0.0)
    results = {
        "out.logits": logits,
        "out.complexity_dynamic": compute.macs.mean(),
        "out.complexity_static": torch.tensor(compute.dense_macs),
    }
    for i, scores in enumerate(found["scores"]):
        if training:
            results[f"out.block{i}_gate"] = found["gates"][i].view_as(scores)
        else:
            results[f"out.block{i}_granularity"] = found["chosen"][i].choice.view(scores.shape[:3])
            results[f"out.block{i}_lengths"] = found["chosen"][i].lengths
    if training:
        ratio = compute.share.mean()
        of_classes = nn.functional.cross_entropy(logits, case.inputs["target"])
        of_budget = case.config["dge_lr_scale"] * budget_penalty(ratio, case.config["budget"], "squared")
        (of_classes + of_budget).backward()
        results |= {"out.loss": of_classes + of_budget, "out.loss_cls": of_classes, "out.loss_dge": of_budget}
        results |= {"out.ratio": ratio, **gradients(network)}
    return results


def features(case: Case) -> dict[str, Tensor]:
    network = model_of(case.config | {"num_classes": 0}, features_only=True).eval()
    # A network that hands out maps has no last norm.
    absent = {f"norm.{part}": torch.zeros(case.config["embed_dims"][-1]) for part in ("weight", "bias")}
    ours = LAYOUT.to_ours(absent | case.state)
    load(network.model, {name: value for name, value in ours.items() if not name.startswith("norm.")})
    with seen(network) as found:
        maps = network(case.inputs["x"])
    results = {f"out.res{i + 2}": each for i, each in enumerate(maps)}
    for i, scores in enumerate(found["scores"]):
        results |= {f"out.block{i}_gate": scores, f"out.block{i}_lengths": found["chosen"][i].lengths}
    return results


def dpvt_block(case: Case) -> dict[str, Tensor]:
    config = case.config
    attention = PointAttention(config["dim"], config["num_heads"], config["num_points"], config["qkv_bias"])
    network = PlainBlock(config["dim"], attention, config["mlp_ratio"], 0.0)
    network.load_state_dict(case.state)
    x = case.inputs["x"].requires_grad_()
    y = network(x, Regions((config["H"], config["W"]), (1,), 0, x.device))
    loss = (y * case.inputs["loss_weight"]).sum()
    loss.backward()
    own = {f"grad.{name}": parameter.grad for name, parameter in network.named_parameters()}
    return {"out.y": y, "out.loss": loss, "out.grad_x": x.grad, **own}


CASES = {
    "pool_unpool": pool_unpool,
    **{f"{host}_block_eval": lambda case: block(case, False) for host in ("deit", "pvt")},
    **{f"{host}_block_train_dense": lambda case: block(case, True) for host in ("deit", "pvt")},
    **{f"{host}_block_train_sparse": lambda case: block(case, True, True) for host in ("deit", "pvt")},
    **{f"{host}_model_eval": lambda case: model(case, False) for host in ("deit", "pvt")},
    **{f"{host}_model_train": lambda case: model(case, True) for host in ("deit", "pvt")},
    "pvt_features": features,
    "dpvt_block": dpvt_block,
}
