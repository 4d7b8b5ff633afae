"""Official DINO checkpoints of a whole training <-> our names; those of a backbone alone are timm's already.

Reference: "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294; layout of
facebookresearch/dino at 7c446df5. The lengths of the last layer's rows and their directions have other names where
torch's newer weight norm has written them.
"""

from models.official.layout import BATCH_NORM, SAME, WEIGHT_BIAS, Contents, Layout, Row, Table
from models.pixels import IMAGENET

_LAST: Contents = {"weight_g": "length", "weight_v": "direction"}
_NEWER: Contents = {"parametrizations.weight.original0": "length", "parametrizations.weight.original1": "direction"}
# Of the MLP of a head: places of linear maps and of norms. The first is of a single linear map.
_MLPS: list[dict[str, Contents]] = [
    {"": WEIGHT_BIAS},
    {".{2Layer}": WEIGHT_BIAS},
    {".{3Layer}": WEIGHT_BIAS, ".{3Norm+1}": BATCH_NORM},
]


def _side(side: str, mlp: dict[str, Contents], last: Contents) -> list[Row]:
    heads: list[Row] = [(f"{side}.head.mlp{at}", f"{side}.projector.mlp{at or '.0'}", what) for at, what in mlp.items()]
    return [(f"{side}.backbone.*", SAME), *heads, (f"{side}.head.last_layer", f"{side}.projector.last_layer", last)]


def _table(mlp: dict[str, Contents], last: Contents) -> Table:
    return [("center", "centre.value"), *_side("student", mlp, last), *_side("teacher", mlp, last)]


LAYOUT = Layout(
    "DINO",
    tables=[_table(mlp, _LAST) for mlp in _MLPS],
    older=[_table(mlp, _NEWER) for mlp in _MLPS],
    official=[r"student\.head\.last_layer\..*", r"center"],
    ours=[r"student\.projector\.last_layer\.direction", r"centre\.value"],
    pixels=IMAGENET | {"size": (224, 224), "interpolation": "bicubic", "crop": 0.875},
    published="teacher",
)
