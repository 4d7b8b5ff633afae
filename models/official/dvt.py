"""Official DVT checkpoints <-> our names, and the costs and thresholds that come with the weights.

The published cascades have three stages, which key names spell out. T2T and DeiT hosts differ in the tokeniser and in
the biases of queries, keys and values; the reuse of features and of relations can each be absent.

Reference: "Not All Images are Worth 16x16 Words", arXiv 2105.15075; layout of blackfeather-wang/
Dynamic-Vision-Transformer at 22cc8951.
"""

from models.official.layout import (
    SAME,
    WEIGHT,
    WEIGHT_BIAS,
    Layout,
    Maybe,
    Row,
    Table,
    inside,
    within,
)
from models.pixels import IMAGENET

_STAGES = ("less_less_token", "less_token", "normal_token")
# A linear layer, an activation and a linear layer: a sequence or timm's MLP.
_SEQUENCE = within("0", "fc1", WEIGHT_BIAS) | within("2", "fc2", WEIGHT_BIAS)
_MLP = within("fc1", "fc1", WEIGHT_BIAS) | within("fc2", "fc2", WEIGHT_BIAS)
_BLOCK = "blocks.{block}"
_ANY_HOST: list[Row] = [
    ("cls_token", SAME),
    ("pos_embed", SAME),
    *((f"{_BLOCK}.{part}", SAME, WEIGHT_BIAS) for part in ("norm1", "attn.proj", "norm2")),
    (f"{_BLOCK}.mlp", SAME, _MLP),
    (f"{_BLOCK}.attn.qkv", SAME, WEIGHT),
    ("norm", SAME, WEIGHT_BIAS),
    ("head", SAME, WEIGHT_BIAS),
]
_DEIT: list[Row] = [("patch_embed.proj", "tokenizer.proj", WEIGHT_BIAS), (f"{_BLOCK}.attn.qkv.bias", SAME)]
_T2T: list[Row] = [("tokens_to_token.project", "tokenizer.project", WEIGHT_BIAS)]
for _attention in ("attention1", "attention2"):
    _theirs, _ours = f"tokens_to_token.{_attention}", f"tokenizer.{_attention}"
    _T2T += [(f"{_theirs}.{part}", f"{_ours}.{part}", WEIGHT_BIAS) for part in ("kqv", "proj", "norm1", "norm2")]
    _T2T += [(f"{_theirs}.mlp", f"{_ours}.mlp", _SEQUENCE), (f"{_theirs}.w", f"{_ours}.w")]
# The official spelling.
_FEATURES: list[Row] = [
    (f"{_BLOCK}.feature_resuse_mlp.0", f"{_BLOCK}.feature_reuse.norm", WEIGHT_BIAS),
    (f"{_BLOCK}.feature_resuse_mlp.1", f"{_BLOCK}.feature_reuse.mlp", _MLP),
]
_RELATIONS: list[Row] = [("relation_reuse_conv", "relation_reuse.mlp", _SEQUENCE)]


def _cascade(rows: list[Row], first: int = 0) -> list[Row]:
    """Rows of a stage for each stage from one on."""
    stages = list(enumerate(_STAGES))[first:]
    return [row for stage, name in stages for row in inside(rows, name, f"stages.{stage}")]


def _table(host: list[Row]) -> Table:
    return [*_cascade(_ANY_HOST + host), Maybe(_cascade(_FEATURES, 1)), Maybe(_cascade(_RELATIONS, 1))]


LAYOUT = Layout(
    "DVT",
    tables=[_table(_DEIT), _table(_T2T)],
    official=[rf"({'|'.join(_STAGES)})\.cls_token"],
    ours=[r"stages\.\d+\.cls_token"],
    pixels=IMAGENET | {"size": (224, 224), "interpolation": "bicubic", "crop": 0.875},
)
