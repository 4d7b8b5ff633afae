"""Official TRAR checkpoints <-> our names: any pooling of the path controllers, with or without boxes.

Adapters are called by what they take: grid features of VQA v2 and of CLEVR.

Reference: "TRAR: Routing the Attention Spans in Transformer for Visual Question Answering", ICCV 2021; layout of
rentainhe/TRAR-VQA at 8f344414.
"""

from models.official.layout import SAME, WEIGHT, WEIGHT_BIAS, Layout, Maybe, Row, Table, within

_NORM = {"a_2": "weight", "b_2": "bias"}
_LSTM = {f"{kind}_{part}_l0": f"{kind}_{part}_l0" for kind in ("weight", "bias") for part in ("ih", "hh")}
_ATTENTION = {
    f"{theirs}.{what}": f"{ours}.{what}"
    for theirs, ours in (("linear_v", "value"), ("linear_k", "key"), ("linear_q", "query"), ("linear_merge", "merge"))
    for what in WEIGHT_BIAS
}
_FEED_FORWARD = within("mlp.fc.linear", "linear1", WEIGHT_BIAS) | within("mlp.linear", "linear2", WEIGHT_BIAS)
_POOL = (
    within("mlp.fc.linear", "hidden", WEIGHT_BIAS)
    | within("mlp.linear", "score", WEIGHT_BIAS)
    | within("linear_merge", "merge", WEIGHT_BIAS)
)
_ENCODER, _DECODER = "backbone.enc_list.{layer}", "backbone.dec_list.{Layer}"
_OURS = "decoder.{Layer}"
_ROUTING, _CONTROLLER = f"{_DECODER}.mhatt1.routing_block", f"{_OURS}.self_attention.controller"
# A network without routing has plain attention there, and no controller.
_ROUTED: list[Row] = [
    (f"{_ROUTING}.mlp.0", f"{_CONTROLLER}.reduce", WEIGHT),
    (f"{_ROUTING}.mlp.2", f"{_CONTROLLER}.score", WEIGHT_BIAS),
]
_BY_ATTENTION: list[Row] = [
    (f"{_ROUTING}.pool", f"{_CONTROLLER}.pool", _POOL),
    (f"{_ROUTING}.pool.norm", f"{_CONTROLLER}.norm", _NORM),
]
_BY_LINEAR: list[Row] = [(f"{_ROUTING}.pool", f"{_CONTROLLER}.pool", WEIGHT_BIAS)]
_REST: list[Row] = [
    ("embedding", SAME, WEIGHT),
    ("lstm", SAME, _LSTM),
    (f"{_ENCODER}.mhatt", "encoder.{layer}.attention", _ATTENTION),
    (f"{_ENCODER}.ffn", "encoder.{layer}.feed_forward", _FEED_FORWARD),
    *((f"{_ENCODER}.norm{i}", f"encoder.{{layer}}.norm{i}", _NORM) for i in (1, 2)),
    (f"{_DECODER}.mhatt1", f"{_OURS}.self_attention", _ATTENTION),
    (f"{_DECODER}.mhatt2", f"{_OURS}.cross_attention", _ATTENTION),
    (f"{_DECODER}.ffn", f"{_OURS}.feed_forward", _FEED_FORWARD),
    *((f"{_DECODER}.norm{i}", f"{_OURS}.norm{i}", _NORM) for i in (1, 2, 3)),
    ("attflat_lang", "word_pool", _POOL),
    ("attflat_img", "cell_pool", _POOL),
    ("proj_norm", "norm", _NORM),
    ("proj", "classifier", WEIGHT_BIAS),
]


def _table(adapter: str) -> Table:
    return [
        *_REST,
        (f"adapter.{adapter}_linear", "adapter.linear", WEIGHT_BIAS),
        Maybe([("adapter.bbox_linear", "adapter.box", WEIGHT_BIAS)]),
        Maybe(_ROUTED),
        Maybe(_BY_ATTENTION),
        Maybe(_BY_LINEAR),
    ]


LAYOUT = Layout(
    "TRAR",
    tables=[_table("frcn"), _table("grid")],
    official=[r"attflat_img\.linear_merge\.weight", r"backbone\.dec_list\.0\.mhatt1\..*"],
    ours=[r"cell_pool\.merge\.weight", r"decoder\.0\.self_attention\.value\.weight"],
)
