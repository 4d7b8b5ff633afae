"""Official MoCo checkpoints <-> our names: v1 with a linear projector, v2 with an MLP.

The backbone has the names of torchvision, which are timm's.

Reference: "Improved Baselines with Momentum Contrastive Learning", arXiv 2003.04297; layout of facebookresearch/moco at
7397dfe1.
"""

from models.official.layout import WEIGHT_BIAS, Layout, Row, Table
from models.pixels import IMAGENET

_REST: Table = [
    ("encoder_q.*", "student.backbone.*"),
    ("encoder_k.*", "teacher.backbone.*"),
    ("queue", "queue.keys"),
    ("queue_ptr", "queue.pointer"),
]


def _projectors(layers: list[str]) -> list[Row]:
    return [
        (f"{theirs}.fc{layer}", f"{ours}.projector.{layer.removeprefix('.') or 0}", WEIGHT_BIAS)
        for theirs, ours in (("encoder_q", "student"), ("encoder_k", "teacher"))
        for layer in layers
    ]


LAYOUT = Layout(
    "MoCo",
    tables=[[*_projectors([".0", ".2"]), *_REST], [*_projectors([""]), *_REST]],
    official=[r"encoder_q\..*", r"encoder_k\..*", r"queue"],
    ours=[r"student\.backbone\..*", r"queue\.keys"],
    pixels=IMAGENET | {"size": (224, 224), "interpolation": "bilinear", "crop": 0.875},
    published="student",
)
