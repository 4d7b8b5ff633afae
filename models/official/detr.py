"""Official DETR checkpoints <-> our names, with masks (`DETRsegm`) or without.

Names differ a little, shapes do not. A checkpoint of masks holds a whole detector under `detr.`, here `detector.`.

Reference: "End-to-End Object Detection with Transformers", arXiv 2005.12872; layout of
facebookresearch/detr at 29901c5.
"""

from models.official.layout import ATTENTION, SAME, WEIGHT, WEIGHT_BIAS, Layout, Maybe, Row, Table, inside
from models.pixels import IMAGENET


def _layer(side: str, attentions: list[str]) -> list[Row]:
    layer = f"transformer.{side}.layers.{{{side}}}"
    modules = ["linear1", "linear2", *(f"norm{i + 1}" for i in range(1 + len(attentions)))]
    return [
        *((f"{layer}.{attention}", SAME, ATTENTION) for attention in attentions),
        *((f"{layer}.{module}", SAME, WEIGHT_BIAS) for module in modules),
    ]


DETECTOR: Table = [
    ("backbone.0.body.*", "backbone.body.*"),
    Maybe(
        [
            ("backbone.1.row_embed", "learned_position.row_embed", WEIGHT),
            ("backbone.1.col_embed", "learned_position.col_embed", WEIGHT),
        ]
    ),
    ("input_proj", SAME, WEIGHT_BIAS),
    ("query_embed", SAME, WEIGHT),
    *_layer("encoder", ["self_attn"]),
    # Of networks that normalise before each sublayer.
    Maybe([("transformer.encoder.norm", SAME, WEIGHT_BIAS)]),
    *_layer("decoder", ["self_attn", "multihead_attn"]),
    ("transformer.decoder.norm", SAME, WEIGHT_BIAS),
    ("class_embed", SAME, WEIGHT_BIAS),
    *((f"bbox_embed.layers.{i}", SAME, WEIGHT_BIAS) for i in range(3)),
]
_MASKS: Table = [
    *inside(DETECTOR, "detr", "detector"),
    ("bbox_attention.q_linear", "mask_attention.q_linear", WEIGHT_BIAS),
    ("bbox_attention.k_linear", "mask_attention.k_linear", WEIGHT_BIAS),
    *((f"mask_head.lay{i + 1}", f"mask_head.convs.{i}", WEIGHT_BIAS) for i in range(5)),
    *((f"mask_head.gn{i + 1}", f"mask_head.norms.{i}", WEIGHT_BIAS) for i in range(5)),
    *((f"mask_head.adapter{i + 1}", f"mask_head.adapters.{i}", WEIGHT_BIAS) for i in range(3)),
    ("mask_head.out_lay", "mask_head.last", WEIGHT_BIAS),
]

_DECODER = r"transformer\.decoder\.layers\.0\.multihead_attn\.in_proj_weight"
LAYOUT = Layout(
    "DETR",
    tables=[DETECTOR, _MASKS],
    # SMCA's has a prior besides.
    official=[rf"(detr\.)?{_DECODER}", r"(detr\.)?backbone\.0\.body\..*", r"!.*layers\.0\.point2\.weight"],
    ours=[rf"(detector\.)?{_DECODER}", r"(detector\.)?backbone\.body\..*", r"!prior\.offsets\.0\.weight"],
    pixels=IMAGENET,
)
