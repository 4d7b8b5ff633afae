"""Builders of the recorded DVT cases."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.classifiers.dvt import DVT
from models.classifiers.dvt_blocks import Block, FeatureReuse, RelationReuse
from models.classifiers.tokens_to_token import TokenPerformer, TokensToTokens, sinusoid
from models.official import load
from models.official.dvt import official_name, our_name, to_official, to_ours
from tests.golden_builders.adaptive_inference import threshold_search

if TYPE_CHECKING:
    from tests.test_golden import Case

TOLERANCE = 2e-5

# A constant added to all logits of the last stage: softmax does not see it. Gradients of its weight are around 0.1.
ZERO = {"grad.normal_token.relation_reuse_conv.2.bias": 1e-6}

# The norms of the two hosts; the files do not record it.
NORM_EPS = {"deit": 1e-6, "t2t": 1e-5}


def side(tokens: int) -> int:
    """Tokens along each side of a grid, the class token not counted."""
    return math.isqrt(tokens)


def in_part(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Official weights of a part of a stage, such as `blocks.0.`, by our name within that part."""
    prefix = our_name(f"less_token.{part}")
    return {our_name(f"less_token.{part}{name}").removeprefix(prefix): value for name, value in state.items()}


def gradients(module: torch.nn.Module, part: str) -> dict[str, Tensor]:
    """Gradients of a part of a stage by their official name within that part."""
    ours, official = our_name(f"less_token.{part}"), f"less_token.{part}"
    return {
        f"grad.{official_name(ours + name).removeprefix(official)}": parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def every(tokens: Tensor, count: int, *dims: int) -> Tensor:
    """Every s-th entry along these axes, s such that `count` of them remain."""
    step = next(s for s in range(1, tokens.shape[dims[0]] + 1) if math.ceil(tokens.shape[dims[0]] / s) == count)
    for dim in dims:
        tokens = tokens.index_select(dim, torch.arange(0, tokens.shape[dim], step))
    return tokens


def enlarged(case: Case) -> Tensor:
    """The recorded images with every pixel repeated along both axes."""
    repeat = case.config["input_repeat"]
    return case.inputs["x_small"].repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)


def token_performer(case: Case) -> dict[str, Tensor]:
    config = case.config
    part = "tokens_to_token.attention1."
    network = TokenPerformer(config["dim"], config["in_dim"], config["kernel_ratio"]).eval()
    network.load_state_dict(in_part(case.state, part))
    x = case.inputs["x"].requires_grad_()
    y = network(x)
    (y * case.inputs["ct"]).sum().backward()
    return {"out.y": y, "out.grad_x": x.grad} | gradients(network, part)


def t2t_module(case: Case) -> dict[str, Tensor]:
    config, images = case.config, enlarged(case)
    grid = side(case.shapes["out.tokens"][1])
    network = TokensToTokens(images.shape[2], grid, config["in_chans"], config["embed_dim"], config["token_dim"]).eval()
    network.load_state_dict(in_part(case.state, "tokens_to_token."))
    return {"out.tokens": network(images)}


def position(case: Case) -> dict[str, Tensor]:
    return {"out.pos_embed": sinusoid(case.config["n_position"], case.config["d_hid"])}


def block(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    dim, eps = config["dim"], NORM_EPS[config["host"]]
    reuse, reuse_dim = None, 0
    if config["feature_reuse"]:
        hidden_dim = case.state["feature_resuse_mlp.1.fc1.weight"].shape[0]
        reuse_dim = case.state["feature_resuse_mlp.1.fc2.weight"].shape[0]
        n, m = side(inputs["upstream_tokens"].shape[1] - 1), side(inputs["x"].shape[1] - 1)
        reuse = FeatureReuse(dim, hidden_dim, reuse_dim, n, m, eps)
    network = Block(
        dim,
        config["num_heads"],
        config["mlp_ratio"],
        qkv_bias=config["host"] == "deit",
        norm_eps=eps,
        feature_reuse=reuse,
        reuse_dim=reuse_dim,
    ).eval()
    network.load_state_dict(in_part(case.state, "blocks.0."))
    x, tokens, reused = inputs["x"].requires_grad_(), inputs.get("upstream_tokens"), inputs.get("reused_relation")
    if tokens is not None:
        tokens.requires_grad_()
    y, relation = network(x, tokens, reused, hand_on=True)
    assert relation is not None
    (y * inputs["ct"]).sum().backward()
    # Attention whose logits nobody asks for takes another way.
    torch.testing.assert_close(network(x, tokens, reused)[0], y, rtol=1e-5, atol=1e-5)
    results = {"out.y": y, "out.grad_x": x.grad}
    if tokens is not None:
        results["out.grad_upstream_tokens"] = tokens.grad
    return results | gradients(network, "blocks.0.") | thinned(case, "out.relation_sub", relation)


def thinned(case: Case, name: str, relation: Tensor) -> dict[str, Tensor]:
    """Attention logits as far as they are recorded, under every recorded name that begins with `name`."""
    return {key: every(relation, shape[2], 2, 3) for key, shape in case.shapes.items() if key.startswith(name)}


def relation(case: Case) -> dict[str, Tensor]:
    config = case.config
    recorded = [case.inputs[f"relation_block{i}"] for i in range(config["depth"])]
    m = side(case.shapes["out.reused_block0"][3] - 1)
    network = RelationReuse(config["depth"], config["num_heads"], side(recorded[0].shape[2] - 1), m).eval()
    network.load_state_dict({name.removeprefix("relation_reuse."): v for name, v in in_part(case.state, "").items()})
    reused = network(recorded)
    return {f"out.reused_block{i}": added[:, :, :: config["row_step"]] for i, added in enumerate(reused)}


def cascade(case: Case) -> dict[str, Tensor]:
    config, images = case.config, enlarged(case)
    grids = [side(case.state[f"{s}.pos_embed"].shape[1] - 1) for s in ("less_less_token", "less_token", "normal_token")]
    network = DVT(**arguments(config), grids=grids, image_size=images.shape[2]).eval()
    load(network, to_ours(case.state))

    exits = network(images)
    loss = sum(F.cross_entropy(logits, case.inputs["soft_target"]) for logits in exits)
    loss.backward()
    results = {f"out.logits_exit{i}": logits for i, logits in enumerate(exits, start=1)} | {"out.loss": loss}
    parameters = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}
    results |= {f"grad.{name}": gradient for name, gradient in to_official(parameters).items()}

    tokens, relations = None, None
    for i, stage in enumerate(network.stages, start=1):
        _, tokens, relations = stage(images, tokens, relations, hand_on=True)
        if shape := case.shapes.get(f"out.tokens_stage{i}"):
            results[f"out.tokens_stage{i}"] = every(tokens, shape[1], 1)
        for block_index, logits in enumerate(relations):
            results |= thinned(case, f"out.relation_stage{i}_block{block_index}_sub", logits)
    return results


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of our cascade for those of the published one."""
    return {name: value for name, value in config.items() if name not in ("input_repeat", "kind")}


def dynamic_eval(case: Case) -> dict[str, Tensor]:
    results = threshold_search(case)
    return results | {"out.test_gflops": results["out.test_flops"]}


CASES = {
    "token_performer": token_performer,
    "t2t_module": t2t_module,
    "sinusoid": position,
    "block_reuse": block,
    "relation": relation,
    "cascade": cascade,
    "dynamic_eval": dynamic_eval,
}
