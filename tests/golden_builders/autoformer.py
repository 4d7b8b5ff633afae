"""Builders of the recorded cases of AutoFormer's networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.autoformer import RelativeAttention
from models.distillation import HardLabels
from models.distillation.seen import Seen
from models.layers.relative_position import RelativePosition2d, distances
from models.official import load
from models.official.autoformer import LAYOUT
from models.supernet.autoformer import EntangledAutoFormer, autoformer_supernet
from models.supernet.entangled import EntangledConv2d, EntangledLayerNorm, EntangledLinear, EntangledQKV
from models.supernet.space import Architecture, TransformerSpace

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
# Recorded without the super network that the weights are extracted from: that of supernet_eval.
WEIGHTS_BESIDE = ("subnet_extracted",)


def architecture(subnet: dict[str, Any]) -> Architecture:
    return (subnet["layer_num"], *subnet["mlp_ratio"], *subnet["num_heads"], subnet["embed_dim"][0])


def supernet(config: dict[str, Any], subnets: list[dict[str, Any]]) -> EntangledAutoFormer:
    """The super network, whose space has all that the recorded sub-networks choose, and its own sizes."""
    each = [[config["depth"]], [config["embed_dim"]], [config["num_heads"]], [config["mlp_ratio"]]]
    for subnet in subnets:
        chosen = [subnet["layer_num"]], subnet["embed_dim"], subnet["num_heads"], subnet["mlp_ratio"]
        each = [[*have, *more] for have, more in zip(each, chosen, strict=True)]
    names = ("img_size", "patch_size", "num_classes", "embed_dim", "relative_position", "max_relative_position")
    sizes = {name: config[name] for name in names if name in config}
    network = autoformer_supernet(TransformerSpace(*each), head_dim=config.get("head_dim", 64), **sizes)
    assert isinstance(network, EntangledAutoFormer)
    return network


def loaded(case: Case, subnets: list[dict[str, Any]]) -> EntangledAutoFormer:
    network = supernet(case.config, subnets)
    load(network, LAYOUT.to_ours(case.state))
    return network


def entangled_modules(case: Case) -> dict[str, Tensor]:
    config, sample, state = case.config, case.config["sample"], case.state

    def of(name: str, layer: nn.Module, **changed: Tensor) -> Any:
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        layer.load_state_dict(own | changed)
        return layer

    linear = of("linear", EntangledLinear(*config["linear_super"]))
    linear.choose(*sample["linear"])
    inputs, rows = config["qkv_super"]
    given = LAYOUT.unpack({"blocks.0.attn.qkv.weight": state["qkv.weight"]})
    qkv = of("qkv", EntangledQKV(inputs, rows // 3), weight=given["blocks.0.attn.qkv.weight"])
    qkv.choose(sample["qkv_in"], 3 * sample["qkv_dim"])
    # Which row of theirs each row of the narrower map is: ours, numbered as they come from theirs.
    numbers = torch.arange(rows)[:, None].expand(rows, inputs).contiguous()
    numbered = LAYOUT.unpack({"blocks.0.attn.qkv.weight": numbers})["blocks.0.attn.qkv.weight"]
    counting = EntangledQKV(inputs, rows // 3)
    counting.choose(sample["qkv_in"], 3 * sample["qkv_dim"])
    counting.load_state_dict({"weight": numbered, "bias": torch.arange(rows)})
    norm = of("layernorm", EntangledLayerNorm(config["layernorm_super"]))
    norm.choose(sample["layernorm"])
    sizes = config["patch_embed_super"]
    side = sizes["patch_size"]
    patches = of("patch_embed.proj", EntangledConv2d(3, sizes["embed_dim"], kernel_size=side, stride=side))
    patches.choose(sample["patch_embed"])
    largest = config["relpos_super"]["max_relative_position"]
    positions = of("relpos", RelativePosition2d(config["relpos_super"]["num_units"], largest))
    grid, units = round((sample["relpos_tokens"] - 1) ** 0.5), sample["relpos_units"]
    x = case.inputs["x"]
    return {
        "out.linear": linear(x),
        "out.linear_params": torch.tensor(sum(each.numel() for each in linear.part())),
        "out.qkv": qkv(x),
        "out.qkv_weight": qkv.part()[0],
        "out.qkv_bias": qkv.part()[1],
        "out.qkv_weight_rows": counting.part()[0][:, 0].long(),
        "out.qkv_bias_rows": counting.part()[1].long(),
        "out.layernorm": norm(x),
        "out.patch_embed": patches(case.inputs["img"]).flatten(2).transpose(1, 2),
        "out.relpos": positions(*distances((grid, grid), 1, largest, x.device))[..., :units],
        "out.relpos_params": torch.tensor(2 * units * len(positions.embeddings_table_v)),
    }


def attention(case: Case) -> dict[str, Tensor]:
    config, x = case.config, case.inputs["x"]
    dim, width, largest = config["super_embed_dim"], config["sample_q_embed_dim"], config["max_relative_position"]
    head_dim = width // config["sample_num_heads"]
    layer = RelativeAttention(dim, config["num_heads"], head_dim, "qkv.bias" in case.state, largest)
    layer.qkv, layer.proj = EntangledQKV(dim, len(case.state["qkv.weight"]) // 3), EntangledLinear(dim, dim)
    official = LAYOUT.unpack({f"blocks.0.attn.{name}": value for name, value in case.state.items()})
    layer.load_state_dict({name.removeprefix("blocks.0.attn."): value for name, value in official.items()})
    layer.qkv.choose(config["sample_in_embed_dim"], 3 * width)
    layer.proj.choose(width, config["sample_in_embed_dim"])
    grid = round((x.shape[1] - 1) ** 0.5)
    return {"out.y": layer(x, distances((grid, grid), 1, largest, x.device))}


def supernet_eval(case: Case) -> dict[str, Tensor]:
    subnets, results = case.config["subnets"], {}
    network = loaded(case, subnets).eval()
    for i, subnet in enumerate(subnets):
        network.choose(architecture(subnet))
        tokens = network.forward_features(case.inputs["x"])
        costs = network.cost(architecture(subnet))
        results |= {
            f"out.cfg{i}.features": network.forward_head(tokens, pre_logits=True),
            f"out.cfg{i}.logits": network(case.inputs["x"]),
            f"out.cfg{i}.params": torch.tensor(costs["params"]),
            f"out.cfg{i}.macs": torch.tensor(costs["multiply_adds"]),
            f"out.cfg{i}.complexity_official": torch.tensor(costs["complexity_official"]),
        }
    return results


def subnet_extracted(case: Case) -> dict[str, Tensor]:
    subnets = case.config["subnets"]
    plain = loaded(case, subnets).extracted(architecture(subnets[1])).eval()
    # timm's names are those of the record.
    weights = {f"out.sub.{name}": value for name, value in plain.state_dict().items()}
    return {"out.logits": plain(case.inputs["x"]), **weights}


def supernet_train_loss(case: Case) -> dict[str, Tensor]:
    sampled = case.config["sampled"]
    network = loaded(case, [*case.config["subnets"], sampled]).train()
    network.choose(architecture(sampled))
    logits, label = network(case.inputs["x"]), case.inputs["teacher_label"]
    soft = F.cross_entropy(logits, case.inputs["target"])
    answers = F.one_hot(label, logits.shape[1]).to(logits)
    taught = HardLabels(label_smoothing=0.1)(Seen((), logits), Seen((), answers))
    total = soft / 2 + taught / 2
    total.backward()
    grads = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    official = LAYOUT.pack({LAYOUT.official_name(name): value for name, value in grads.items()})
    return {
        "out.logits": logits,
        "out.loss_soft_target": soft,
        "out.loss_teacher_ls": taught,
        "out.loss_total": total,
        **{f"grad.{name}": value for name, value in official.items()},
    }


CASES = {
    "entangled_modules": entangled_modules,
    "attention": attention,
    "supernet_eval": supernet_eval,
    "subnet_extracted": subnet_extracted,
    "supernet_train_loss": supernet_train_loss,
}
