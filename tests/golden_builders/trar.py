"""Builders of the recorded TRAR cases: layers and whole networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.decisions import noted
from models.layers.routed_attention import AttentionPool, PathController, RoutedAttention
from models.layers.spans import SpanMasks
from models.layers.unbiased_norm import UnbiasedLayerNorm
from models.official import load
from models.official.trar import LAYOUT
from models.vqa import TRAR, answer_loss
from models.vqa.trar import Adapter, DecoderLayer, EncoderLayer

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def network(case: Case, **options: Any) -> TRAR:
    """The network that the official constructor makes of a config, with the recorded weights if there are all."""
    config, clevr = case.config, case.config["DATASET"] == "clevr"
    features = config["FEAT_SIZE"]["clevr"]["GRID_FEAT_SIZE"] if clevr else config["FEAT_SIZE"]["vqa"]["FRCN_FEAT_SIZE"]
    made = TRAR(
        config["answer_size"],
        config["token_size"],
        in_chans=features[1],
        dim=config["HIDDEN_SIZE"],
        feedforward_dim=config["FF_SIZE"],
        num_heads=config["MULTI_HEAD"],
        num_layers=config["LAYER"],
        dropout=config["DROPOUT_R"],
        orders=config["ORDERS"],
        word_dim=config["WORD_EMBED_SIZE"],
        pool_dim=config["FLAT_MLP_SIZE"],
        glimpses=config["FLAT_GLIMPSES"],
        out_dim=config["FLAT_OUT_SIZE"],
        box_dim=config["BBOXFEAT_EMB_SIZE"] if config["USE_BBOX_FEAT"] else None,
        routing=config["ROUTING"],
        pooling=config["POOLING"],
        temperature=config["TAU_MAX"],
        **{"eval_routing": "sample", "binarize": config["BINARIZE"]} | options,
    )
    return made.eval()


def grid_size(case: Case) -> tuple[int, int]:
    side = case.config["IMG_SCALE"]
    return side, side


def pull(module: nn.Module, tau: Tensor, noise: Tensor) -> None:
    """Has the path controllers draw recorded noise [layers, B, spans], or that of one of them."""
    controllers = [each for each in module.modules() if isinstance(each, PathController)]
    for controller, drawn in zip(controllers, noise if noise.ndim == 3 else noise[None], strict=True):
        controller.temperature = tau
        controller.noise = lambda _, drawn=drawn: drawn  # type: ignore[method-assign]


def gradients(module: nn.Module, prefix: str, official: str = "") -> dict[str, Tensor | None]:
    """Gradients by their official name, of a part by that within the part."""
    return {
        f"grad.{LAYOUT.official_name(prefix + name).removeprefix(official)}": parameter.grad
        for name, parameter in module.named_parameters()
    }


def span_masks(case: Case) -> dict[str, Tensor]:
    size = grid_size(case)
    padding = case.inputs["x_mask"][:, 0, 0].bool()
    spans = SpanMasks(case.config["ORDERS"])(size, padding)
    results = {
        f"out.get_masks.order{r}": blocked.long() for r, blocked in zip(spans.orders, spans.blocked, strict=True)
    }
    masks = zip(spans.orders, spans.windows, strict=True)
    return results | {f"out.span_mask.order{r}": window.long() for r, window in masks if window is not None}


def routing_block(pooling: str) -> Any:
    def build(case: Case) -> dict[str, Tensor | None]:
        inputs, official = case.inputs, "backbone.dec_list.0.mhatt1.routing_block"
        prefix = "decoder.0.self_attention.controller."
        count = inputs["gumbel"].shape[-1]
        controller = PathController(inputs["x"].shape[2], count, "hard", pooling, eval_routing="sample").eval()  # type: ignore[arg-type]
        ours = {LAYOUT.our_name(f"{official}.{name}").removeprefix(prefix): v for name, v in case.state.items()}
        controller.load_state_dict(ours)
        padding = torch.zeros(inputs["x"].shape[:2], dtype=torch.bool)
        pooled = controller.pooled(inputs["x"], padding)
        logits, drawn = controller.logits(pooled), []
        for tau, noise in zip(inputs["tau"], inputs["gumbel"], strict=True):
            pull(controller, tau, noise)
            drawn.append(controller.route(logits))
        controller.eval_routing = "mean"
        loss = (drawn[1] * inputs["w"]).sum()
        loss.backward()
        results = {"pooled": pooled, "logits": logits, "alpha_soft": controller.route(logits), "loss": loss}
        return {
            **{f"out.{name}": value for name, value in results.items()},
            "out.alpha_hard": torch.stack(drawn),
            **gradients(controller, prefix, f"{official}."),
        }

    return build


def routed(case: Case, **options: Any) -> RoutedAttention:
    """The routed self-attention of a case."""
    config, prefix = case.config, "decoder.0.self_attention."
    layer = RoutedAttention(
        config["HIDDEN_SIZE"],
        config["MULTI_HEAD"],
        len(config["ORDERS"]),
        config["ROUTING"],
        pooling=config["POOLING"],
        **{"eval_routing": "sample"} | options,
    ).eval()
    names = {name: LAYOUT.our_name(f"backbone.dec_list.0.mhatt1.{name}").removeprefix(prefix) for name in case.state}
    layer.load_state_dict({names[name]: value for name, value in case.state.items()})
    return layer


def sa_routing(case: Case) -> dict[str, Tensor | None]:
    x, hard = case.inputs["x"], case.config["ROUTING"] == "hard"
    spans = SpanMasks(case.config["ORDERS"])(grid_size(case), case.inputs["x_mask"][:, 0, 0].bool())
    layer, alone = routed(case), routed(case, binarize=True)
    if hard:
        pull(layer, case.inputs["tau"], case.inputs["gumbel"])
        pull(alone, case.inputs["tau"], case.inputs["gumbel"])
    mixed = layer(x, spans)
    loss = mixed.square().mean()
    loss.backward()
    results = {"out.loss": loss, "out.alpha": noted(layer)["mixing"].values}
    results |= gradients(layer, "decoder.0.self_attention.", "backbone.dec_list.0.mhatt1.")
    if not hard:
        return results | {"out.y": mixed}
    binarized = alone(x, spans)
    return results | {
        "out.y.soft_weights": mixed,
        "out.y.binarized": binarized,
        "out.alpha_binarized": noted(alone)["mixing"].values,
    }


def layers(case: Case) -> dict[str, Tensor]:
    inputs, config = case.inputs, case.config
    x, y = inputs["x"], inputs["y"]
    x_padding, y_padding = (inputs[name][:, 0, 0].bool() for name in ("x_mask", "y_mask"))
    sizes = (config["HIDDEN_SIZE"], config["FF_SIZE"], config["MULTI_HEAD"], config["DROPOUT_R"])
    spans = SpanMasks(config["ORDERS"])(grid_size(case), x_padding)
    norm = UnbiasedLayerNorm(sizes[0])
    encoder = EncoderLayer(*sizes)
    decoder = DecoderLayer(*sizes, len(spans.orders), routing=config["ROUTING"], pooling=config["POOLING"])
    pool = AttentionPool(sizes[0], config["FLAT_MLP_SIZE"], config["FLAT_OUT_SIZE"], config["FLAT_GLIMPSES"])
    # Where each part stands in the official network and in ours.
    parts = {
        "layer_norm.": (norm, "proj_norm.", "norm."),
        "encoder.": (encoder, "backbone.enc_list.0.", "encoder.0."),
        "decoder.": (decoder, "backbone.dec_list.0.", "decoder.0."),
        "attflat.": (pool, "attflat_img.", "cell_pool."),
    }
    for key, (module, official, ours) in parts.items():
        own = {name.removeprefix(key): value for name, value in case.state.items() if name.startswith(key)}
        module.eval().load_state_dict(
            {LAYOUT.our_name(official + name).removeprefix(ours): value for name, value in own.items()}
        )
    return {
        "out.layer_norm": norm(y),
        "out.mhatt": encoder.attention(y, y, y_padding[:, None, None]),
        "out.ffn": encoder.feed_forward(y),
        "out.encoder": encoder(y, y_padding),
        "out.decoder": decoder(x, spans, y, y_padding),
        "out.attflat_lang": pool(y, y_padding),
        "out.attflat_img": pool(x, x_padding),
    }


def adapter_bbox(case: Case) -> dict[str, Tensor]:
    boxes = case.config["BBOXFEAT_EMB_SIZE"]
    dim, width = case.state["frcn_linear.weight"].shape
    adapter = Adapter(width - boxes, dim, boxes)
    names = {name: LAYOUT.our_name(f"adapter.{name}").removeprefix("adapter.") for name in case.state}
    adapter.load_state_dict({names[name]: value for name, value in case.state.items()})
    cells, padding = adapter(case.inputs["frcn_feat"], case.inputs["bbox_feat"])
    return {"out.img_feat": cells, "out.img_feat_mask": padding[:, None, None].long()}


def features(case: Case) -> Tensor:
    """Recorded tokens [..., N, C] as a grid [..., H, W, C]."""
    given = case.inputs.get("frcn_feat", case.inputs.get("grid_feat"))
    assert given is not None
    return given.unflatten(-2, grid_size(case))


def loss_of(case: Case, logits: Tensor, target: Tensor) -> Tensor:
    return answer_loss(logits, target, "ce" if case.config["DATASET"] == "clevr" else "bce")


def net(case: Case) -> dict[str, Tensor | None]:
    given = (case.inputs["ques_ix"], features(case), case.inputs.get("bbox_feat"))
    whole, alone = network(case), network(case, binarize=True)
    for each in (whole, alone):
        load(each, LAYOUT.to_ours(case.state))
        if "gumbel" in case.inputs:
            pull(each, case.inputs["tau"], case.inputs["gumbel"])
    logits = whole(*given)
    alphas = torch.stack([each.values for each in noted(whole).values() if each.kind == "mixture"])
    loss = loss_of(case, logits, case.inputs["target"])
    loss.backward()
    encoded = whole.encode(*given)
    return {
        "out.logits": logits,
        "out.logits_binarized": alone(*given),
        "out.alphas": alphas,
        "out.lang": encoded.words,
        "out.img": encoded.cells,
        "out.loss": loss,
        **gradients(whole, ""),
    }


CASES = {
    "span_masks": span_masks,
    "routing_block_attention": routing_block("attention"),
    "routing_block_avg": routing_block("avg"),
    "routing_block_fc": routing_block("fc"),
    "sa_routing_soft": sa_routing,
    "sa_routing_hard": sa_routing,
    "layers": layers,
    "adapter_bbox": adapter_bbox,
    "net_vqa": net,
    "net_clevr": net,
}
