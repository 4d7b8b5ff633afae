"""Builders of the recorded SOLQ cases of attention, transformer, Swin backbone and the whole network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.detectors.batching import pad
from models.detectors.deformable_transformer import (
    DecoderLayer,
    DeformableTransformer,
    EncoderLayer,
    Memory,
    Queries,
    token_centres,
)
from models.detectors.features import Features
from models.detectors.solq import SOLQ
from models.layers.deformable_attention import DeformableAttention, Levels, weighted_samples
from models.official import load
from models.official.solq import LAYOUT as official
from tests.golden_builders.detr_deformable import options, whole
from tests.golden_builders.solq_backbone import images_of
from tests.golden_builders.solq_losses import coded_targets

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 5e-5
# Filled by a case, see `vanishing`.
ZERO: dict[str, float] = {}


def levels_of(case: Case) -> Levels:
    return Levels.of([tuple(size) for size in case.config["shapes"]], torch.device("cpu"))


def load_part(module: nn.Module, case: Case, prefix: str, ours: str) -> None:
    """Weights of a part of the transformer, translated as part of a whole checkpoint is."""
    renamed = {official.official_name(f"{ours}{name}").removeprefix(prefix): name for name in module.state_dict()}
    module.load_state_dict({renamed[name]: value for name, value in case.state.items()})


def msda_core(case: Case) -> dict[str, Tensor]:
    levels = levels_of(case)
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (case.inputs[name].requires_grad_() for name in names)
    cells = (locations * levels.extent[:, None] - 0.5).flatten(3, 4)
    output = weighted_samples(value, levels, cells[..., 0], cells[..., 1], weights.flatten(3))
    (output * case.inputs["cotangent"]).sum().backward()
    gradients = zip(names, (value, locations, weights), strict=True)
    return {"out.output": output} | {f"out.grad_{name}": x.grad for name, x in gradients}


def msda_module(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    attention = DeformableAttention(config["d_model"], config["heads"], len(config["shapes"]), config["points"])
    results = {"out.init_sampling_offsets_bias": attention.sampling_offsets.bias.detach().clone()}
    attention.load_state_dict(case.state)
    memory, levels, padding = inputs["input_flatten"], levels_of(case), inputs["padding_mask"].bool()
    points = attention(inputs["query"], inputs["ref2"], memory, levels, padding)
    boxes = attention(inputs["query"], inputs["ref4"], memory, levels, padding)
    (points.square().sum() + boxes.square().sum()).backward()
    results |= {
        "out.output_ref2": points,
        "out.output_ref4": boxes,
        "out.output_ref2_nomask": attention(inputs["query"], inputs["ref2"], memory, levels),
    }
    return results | {f"grad.{name}": parameter.grad for name, parameter in attention.named_parameters()}


def layer_sizes(case: Case) -> tuple[int, int, int, int, int, float]:
    c = case.config
    return c["d_model"], c["d_ffn"], c["heads"], len(c["shapes"]), c["points"], c["dropout"]


def encoder_layer(case: Case) -> dict[str, Tensor]:
    layer = EncoderLayer(*layer_sizes(case)).eval()
    load_part(layer, case, "transformer.encoder.layers.0.", "transformer.encoder.0.")
    levels, ratios = levels_of(case), case.inputs["valid_ratios"]
    references = token_centres(levels, ratios)[:, :, None] * ratios[:, None]
    padding = case.inputs["padding_mask"].bool()
    output = layer(case.inputs["src"], case.inputs["pos"], references, levels, padding)
    return {"out.output": output, "out.reference_points": references}


def decoder_layer(case: Case) -> dict[str, Tensor]:
    layer = DecoderLayer(*layer_sizes(case)).eval()
    load_part(layer, case, "transformer.decoder.layers.0.", "transformer.decoder.0.")
    inputs = case.inputs
    memory = Memory(inputs["src"], inputs["padding_mask"].bool(), levels_of(case), inputs["valid_ratios"])
    return {"out.output": layer(inputs["tgt"], inputs["query_pos"], inputs["reference_points"], memory)}


def transformer(case: Case) -> dict[str, Tensor]:
    c, levels = case.config, range(case.config["num_feature_levels"])
    network = DeformableTransformer(
        c["hidden_dim"],
        c["dim_feedforward"],
        c["nheads"],
        c["num_feature_levels"],
        c["enc_layers"],
        c["dec_layers"],
        c["enc_n_points"],
        c["dec_n_points"],
        c["dropout"],
    ).eval()
    point = nn.Linear(c["hidden_dim"], 2)
    point.load_state_dict({name: case.state.pop(f"reference_points.{name}") for name in ("weight", "bias")})
    load_part(network, case, "transformer.", "transformer.")
    maps, positions = ([case.inputs[f"{name}_{i}"] for i in levels] for name in ("src", "pos"))
    memory = network.encode(maps, [case.inputs[f"mask_{i}"].bool() for i in levels], positions)
    position, content = case.inputs["query_embed"].expand(len(maps[0]), -1, -1).chunk(2, -1)
    references = point(position).sigmoid()
    states, _ = network.decode(memory, Queries(content, position, references))
    return {
        "out.memory": memory.tokens,
        "out.hs": torch.stack(states),
        "out.init_reference": references,
        "out.inter_references": references.expand(len(states), -1, -1, -1),
    }


def groups_of(network: nn.Module) -> dict[str, int]:
    """Group of the published optimiser, by parts of our names, of each trained parameter by its published name."""
    groups = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            slow = any(part in name for part in ("reference_points", "sampling_offsets"))
            groups[published_name(name)] = 1 if "backbone" in name else 2 * slow
    return groups


def published_name(name: str) -> str:
    # The optimiser meets the box heads inside of the decoder first.
    return official.official_name(name).replace("bbox_embed.", "transformer.decoder.bbox_embed.")


def vanishing(network: SOLQ, maps: list[Tensor]) -> dict[str, float]:
    """Bounds on the gradients that come through a group norm of two values: those are -1 and 1 whatever comes in.

    What is left of them is rounding, and the epsilon of the norm: about a hundredth of the other projections'.
    """
    few = (i for i, x in enumerate(maps) if x[0].numel() <= 2 * network.input_proj[i][1].num_groups)
    return {f"grad.input_proj.{i}.0.weight": 1e-3 for i in few}


def swin_backbone(case: Case) -> dict[str, Tensor]:
    c = case.config
    names = ("qkv_bias", "drop_path_rate", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
    options = {name: c[name] for name in names}
    network = Features("swin_tiny_dense", options, levels=c["out_indices"], frozen_stages=0).eval()
    prefix = "backbone.0."
    renamed = {official.official_name(f"backbone.{name}").removeprefix(prefix): name for name in network.state_dict()}
    state = {name: value for name, value in case.state.items() if not name.endswith("relative_position_index")}
    network.load_state_dict({renamed[name]: value for name, value in state.items()})
    images, padding = pad(images_of(case))
    results = {"out.padded_mask": padding.float()}
    for i, (x, mask) in enumerate(network(images, padding)):
        results |= {f"out.feat_{i}": x, f"out.mask_{i}": mask.float()}
    return results


def solq_forward(case: Case) -> dict[str, Tensor]:
    c = case.config
    network = SOLQ(
        **options(c),
        num_coefficients=c["n_keep"],
        mask_size=c["gt_mask_len"],
        vector_hidden_dim=c["vector_hidden_dim"],
    )
    fresh = official.to_official(network.state_dict())
    results = {f"out.init.{name}": value.clone() for name, value in fresh.items()}
    load(network, official.to_ours(case.state))
    assert groups_of(network) == c["param_groups"]
    maps, paddings = network.project(*pad(images_of(case)))
    ZERO.clear()
    ZERO.update(vanishing(network, maps))
    for level, (x, padding) in enumerate(zip(maps, paddings, strict=True)):
        results |= {f"out.src_{level}": x, f"out.mask_{level}": padding.float()}
        results |= {f"out.pos_{level}": network.position(padding)}
    return results | whole(case, network, official.to_official, coded_targets(case))


CASES = {
    "msda_core": msda_core,
    "msda_module": msda_module,
    "deform_encoder_layer": encoder_layer,
    "deform_decoder_layer": decoder_layer,
    "deform_transformer": transformer,
    "swin_backbone": swin_backbone,
    "solq_forward": solq_forward,
}
