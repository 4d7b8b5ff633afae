"""Official RANet checkpoints <-> our names. Names differ, shapes do not.

Reference: "Resolution Adaptive Networks for Efficient Inference", arXiv 2003.07326; layout of
yangle15/RANet-pytorch at be0f25a2.
"""

from models.official.layout import BATCH_NORM, WEIGHT, WEIGHT_BIAS, Contents, Layout, Maybe, State, Table, within
from models.pixels import IMAGENET, Stated


def _conv(position: int = 0) -> Contents:
    """A convolution and its norm, within a sequence."""
    conv, norm = f"{position}", f"{position + 1}"
    return within(f"net.{conv}", conv, WEIGHT) | within(f"net.{norm}", norm, BATCH_NORM)


_BOTTLENECK = _conv(0) | _conv(3)
_SUBNETS: Table = [
    (
        "scale_flows.{subnet}.{block}.layers.{layer}.conv_normal",
        "subnets.{subnet}.{block}.layers.{layer}.own",
        _BOTTLENECK,
    ),
    # Blocks that fuse maps of the sub-network before.
    Maybe(
        [
            (
                "scale_flows.{subnet}.{block}.layers.{layer}.conv_up",
                "subnets.{subnet}.{block}.layers.{layer}.low",
                _BOTTLENECK,
            ),
            ("scale_flows.{subnet}.{block}.conv_last", "subnets.{subnet}.{block}.last", _conv()),
        ],
        per="subnet block",
    ),
    Maybe([("scale_flows.{subnet}.{block}.trans", "subnets.{subnet}.{block}.transition", _conv())], per="subnet block"),
    ("classifier.{exit}.m.0", "heads.{exit}.conv1", _conv()),
    ("classifier.{exit}.m.1", "heads.{exit}.conv2", _conv()),
    ("classifier.{exit}.linear", "heads.{exit}.linear", WEIGHT_BIAS),
]
_CIFAR: Table = [("FirstLayer.layers.{subnet}", "base.{subnet}", _conv())]
_IMAGENET: Table = [
    ("FirstLayer.layers.0.0", "base.0.conv", WEIGHT_BIAS),
    ("FirstLayer.layers.0.1", "base.0.norm", BATCH_NORM),
    ("FirstLayer.layers.{later+1}", "base.{later+1}", _conv()),
]

# By the number of classes.
_CIFAR_PIXELS: dict[int, Stated] = {
    10: {"mean": (0.4914, 0.4824, 0.4467), "std": (0.2471, 0.2435, 0.2616)},
    100: {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)},
}


def _pixels(state: State) -> Stated | None:
    if "FirstLayer.layers.0.0.weight" in state:
        return IMAGENET | {"size": (224, 224), "interpolation": "bilinear", "crop": 0.875}
    return _CIFAR_PIXELS.get(len(state["classifier.0.linear.bias"]))


LAYOUT = Layout(
    "RANet",
    tables=[[*_CIFAR, *_SUBNETS], [*_IMAGENET, *_SUBNETS]],
    official=[r"scale_flows\.\d+\.\d+\.layers\.\d+\.conv_normal\.net\..*"],
    ours=[r"subnets\.\d+\.\d+\.layers\.\d+\.own\..*"],
    pixels=_pixels,
)
