"""Builders of the recorded cases of DETR and SMCA: layers, whole networks, mask heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.detectors.batching import pad
from models.detectors.dense_transformer import Attention, DecoderLayer, EncoderLayer
from models.detectors.detr import DETR, Decoded
from models.detectors.detr_segmentation import MaskAttention, MaskHead, binary_masks
from models.detectors.set_criterion import LossWeights, SetCriterion, SetTarget
from models.detectors.smca import SMCA, GaussianPrior
from models.layers.position_encoding import LearnedPositionEncoding
from models.official import detr, load, smca
from tests.golden_builders.solq_backbone import images_of, pos_sine, resnet
from tests.golden_builders.solq_losses import PUBLISHED_TERMS, logged, match_weights, per_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from tests.library.golden import Case

# Gradients of whole networks were recorded in float32, which is 3e-5 from what float64 gives.
TOLERANCE = 1e-4


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def swap(x: Tensor) -> Tensor:
    """Sequence first <-> batch first."""
    return x.transpose(0, 1)


def pos_learned(case: Case) -> dict[str, Tensor]:
    encoding = LearnedPositionEncoding(case.config["num_pos_feats"], len(case.state["row_embed.weight"]))
    encoding.load_state_dict(case.state)
    return {"out.pos": encoding(case.inputs["x"][:, 0])}


def layer_of(case: Case, kind: type[EncoderLayer] | type[DecoderLayer], name: str, pre_norm: bool = False) -> nn.Module:
    config = case.config
    layer = kind(config["d_model"], config["nhead"], config["dim_feedforward"], config["dropout"], pre_norm)
    layer.load_state_dict({key: case.state[f"{name}.{key}"] for key in layer.state_dict()})
    return layer.eval()


def encoder_layer(case: Case) -> dict[str, Tensor]:
    src, position = swap(case.inputs["src"]), swap(case.inputs["pos"])
    padding = case.inputs["key_padding_mask"].bool()
    return {
        f"out.{name}": swap(layer_of(case, EncoderLayer, name, name == "pre")(src, position, padding))
        for name in ("post", "pre")
    }


def decoder_layer(case: Case) -> dict[str, Tensor]:
    names = ("tgt", "query_pos", "src", "pos")
    inputs = [swap(case.inputs[name]) for name in names] + [case.inputs["key_padding_mask"].bool()]
    return {f"out.{name}": swap(layer_of(case, DecoderLayer, name, name == "pre")(*inputs)) for name in ("post", "pre")}


def smca_attention(case: Case) -> dict[str, Tensor]:
    heads = case.config["nhead"]
    attention = Attention(case.config["d_model"], heads, case.config["dropout"]).eval()
    attention.load_state_dict(case.state)
    query, key, value = (swap(case.inputs[name]) for name in ("query", "key", "value"))
    padding = case.inputs["key_padding_mask"].bool()
    bias = case.inputs["gaussian"].permute(2, 0, 1).unflatten(0, (-1, heads))
    return {
        "out.output": swap(attention(query, key, value, padding, bias)),
        "out.weights": attention.weights(query, key, padding, bias),
    }


def prior_of(case: Case, kind: str, index: int) -> GaussianPrior:
    """The prior of the layer `index` of a decoder; of the layers before it only the first one's centre is recorded."""
    config = case.config
    prior = GaussianPrior(config["d_model"], config["nhead"], 1, kind, config["smooth"])
    layer = {
        f"transformer.decoder.layers.0.{name}": value for name, value in under(f"{kind}_{index}.", case.state).items()
    }
    named = {smca.LAYOUT.our_name(name): value for name, value in layer.items()}
    loaded = prior.load_state_dict(under("prior.", named), strict=False)
    assert not loaded.unexpected_keys
    assert all(name.startswith("centre.") for name in loaded.missing_keys) or index == 0
    return prior


def smca_decoder_layer(case: Case) -> dict[str, Tensor]:
    config = case.config
    heads, shape = config["nhead"], (config["hw"][0], config["hw"][1])
    tgt, query_position, memory, position = (swap(case.inputs[name]) for name in ("tgt", "query_pos", "memory", "pos"))
    placed = tgt + query_position
    results = {}
    for kind in config["dynamic_scales"]:
        for index in config["layer_indices"]:
            prior = prior_of(case, kind, index)
            name = f"{kind}_{index}"
            if index == 0:
                centres = prior.centres(placed)
                cells = swap(case.inputs["w_h"]) / config["stride"] * centres.sigmoid()
                results[f"out.{name}.point_logits"] = swap(centres)
                results[f"out.{name}.point_ref"] = swap(cells.repeat(1, 1, heads))
            else:
                cells = swap(case.inputs["point_ref_previous"])[..., :2]
            bias = prior(0, placed, cells, shape)
            layer = layer_of(case, DecoderLayer, name)
            padding = case.inputs["memory_mask"].bool()
            results[f"out.{name}.gaussian"] = bias.flatten(0, 1).permute(1, 2, 0)
            results[f"out.{name}.output"] = swap(layer(tgt, query_position, memory, position, padding, bias))
    return results


def options(config: dict[str, Any]) -> dict[str, Any]:
    """Our arguments for the published ones."""
    return {
        "backbone": "narrow_resnet",
        "backbone_options": resnet(config),
        "num_classes": config["num_classes"],
        "num_queries": config["num_queries"],
        "hidden_dim": config["hidden_dim"],
        "num_heads": config["nheads"],
        "feedforward_dim": config["dim_feedforward"],
        "encoder_layers": config["enc_layers"],
        "decoder_layers": config["dec_layers"],
        "dropout": config["dropout"],
        "pre_norm": config["pre_norm"],
    }


def criterion_of(config: dict[str, Any], classification: Any) -> SetCriterion:
    weights = config["loss_weights"]
    return SetCriterion(
        config["num_classes"],
        classification,
        match_weights(config),
        LossWeights(ce=weights["loss_ce"], l1=weights["loss_bbox"], giou=weights["loss_giou"]),
        no_object_weight=config.get("eos_coef", 0.1),
        alpha=config.get("focal_alpha", 0.25),
    )


def whole(
    case: Case, network: DETR, criterion: SetCriterion, official: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], Decoded]:
    """Predictions, losses and gradients of a network whose weights are loaded."""
    # Without dropout and with frozen norms training does not differ from evaluation.
    assert case.config["dropout"] == 0
    network.train()
    decoded = network.decode(network.encode(*pad(images_of(case))))
    predictions = network.predictions(decoded, all_layers=True)
    targets = [SetTarget(*each) for each in zip(per_image(case, "labels"), per_image(case, "boxes"), strict=True)]
    losses = criterion(predictions, targets)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    last = len(predictions.logits) - 1
    prefixes = {i: "" if i == last else f"aux_{i}." for i in range(last + 1)}
    leaves = {f"{prefix}pred_logits": predictions.logits[i] for i, prefix in prefixes.items()}
    leaves |= {f"{prefix}pred_boxes": predictions.boxes[i] for i, prefix in prefixes.items()}
    results = {f"out.{name}": value for name, value in leaves.items()} | logged(case, criterion, leaves)
    for name, value in losses.items():
        kind, _, layer = name.partition("_")
        published = PUBLISHED_TERMS[kind]
        weighted = value / case.config["loss_weights"][published]
        results["_".join(filter(None, [f"out.loss.{published}", layer]))] = weighted
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())
    results |= {f"grad.{name}": value for name, value in official(gradients | buffers).items() if name not in buffers}
    return results | {"out.total": total, "out.hs": decoded.states}, decoded


def detr_forward(case: Case) -> dict[str, Tensor]:
    network = DETR(**options(case.config))
    load(network, detr.LAYOUT.to_ours(case.state))
    results, decoded = whole(case, network, criterion_of(case.config, "softmax"), detr.LAYOUT.to_official)
    return results | {
        "out.src": decoded.encoded.projected,
        "out.mask": decoded.encoded.padding.float(),
        "out.pos": network.position(decoded.encoded.padding),
        "out.memory": decoded.encoded.memory_map(),
    }


def smca_forward(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = SMCA(**options(config), gaussian_scale=config["dynamic_scale"], smooth=config["smooth"])
    assert network.backbone.strides[-1] == config["stride"]
    fresh = smca.LAYOUT.to_official(network.state_dict())
    initial = {f"out.init.{name}": value.clone() for name, value in fresh.items()}
    load(network, smca.LAYOUT.to_ours(case.state))
    results, decoded = whole(case, network, criterion_of(config, "focal"), smca.LAYOUT.to_official)
    assert decoded.centres is not None
    return (
        initial
        | results
        | {
            "out.memory": swap(decoded.encoded.memory.tokens),
            "out.points": decoded.centres.expand(len(decoded.encoded.memory.tokens), -1, -1),
        }
    )


def detr_segm_heads(case: Case) -> dict[str, Tensor]:
    config, inputs = case.config, case.inputs
    attention = MaskAttention(config["hidden_dim"], config["nheads"])
    head = MaskHead(config["hidden_dim"] + config["nheads"], config["context_dim"], config["fpn_dims"])
    ours = {detr.LAYOUT.our_name(name): value for name, value in case.state.items()}
    attention.load_state_dict(under("mask_attention.", ours))
    head.load_state_dict(under("mask_head.", ours))
    maps = attention(inputs["q"], inputs["memory"], inputs["mask"].bool())
    masks = head(inputs["src_proj"], maps, [inputs[f"fpn_{i}"] for i in range(len(config["fpn_dims"]))])
    padded = (max(height for height, _ in config["sizes"]), max(width for _, width in config["sizes"]))
    results = {"out.attention": maps, "out.pred_masks": masks}
    for i, (size, original) in enumerate(zip(config["sizes"], config["orig_sizes"], strict=True)):
        results[f"out.{i}.masks"] = binary_masks(masks[i], padded, tuple(size), tuple(original))[:, None].float()
    return results


CASES = {
    "detr_pos_sine": pos_sine,
    "pos_learned": pos_learned,
    "detr_encoder_layer": encoder_layer,
    "detr_decoder_layer": decoder_layer,
    "detr_forward": detr_forward,
    "detr_forward_prenorm": detr_forward,
    "detr_segm_heads": detr_segm_heads,
    "smca_attention": smca_attention,
    "smca_decoder_layer": smca_decoder_layer,
    "smca_forward": smca_forward,
}
