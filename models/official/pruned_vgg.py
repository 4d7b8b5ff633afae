"""Official checkpoints of pruned and unpruned VGGs <-> our names; the numbers of layers stay.

Reference: "Rethinking the Value of Network Pruning", arXiv 1810.05270; layout of
Eric-mingjie/rethinking-network-pruning at 2ac473d7. Small images' have `feature`, ImageNet's a data-parallel
`features`; those of the studies of single weights, and torchvision's, have `features` alone.
"""

import re
from collections.abc import Sequence

import torch

from models.official.layout import BATCH_NORM, COUNTER, SAME, WEIGHT_BIAS, Layout, Row, State
from models.pixels import CIFAR, IMAGENET, Stated

_HIDDEN: list[Row] = [
    ("classifier.0", SAME, WEIGHT_BIAS),
    ("classifier.1", SAME, BATCH_NORM),
    ("classifier.3", SAME, WEIGHT_BIAS),
]
_LINEAR: list[Row] = [("classifier", SAME, WEIGHT_BIAS)]


def _head(linear: Sequence[int], norms: Sequence[int] = ()) -> list[Row]:
    rows: list[Row] = [(f"classifier.{i}", f"head.{i}", WEIGHT_BIAS) for i in linear]
    return rows + [(f"classifier.{i}", f"head.{i}", BATCH_NORM) for i in norms]


# With dropout, with norms, and behind a global average.
_HEADS = [_head((0, 3, 6)), _head((0, 3, 6), (1, 4)), _head((0,))]


def _pixels(state: State) -> Stated:
    large = "classifier.1.running_mean" not in state and "classifier.weight" not in state
    return IMAGENET | {"size": (224, 224), "interpolation": "bilinear", "crop": 0.875} if large else CIFAR


def _options(state: State) -> dict[str, object]:
    widths: list[int | str] = []
    step = 3 if "trunk.1.running_mean" in state else 2
    convs = {int(name.split(".")[1]): len(value) for name, value in state.items() if value.dim() == 4}
    for position, width in sorted(convs.items()):
        # A layer between the last one's activation and this one is a pool.
        widths += ["M"] if position and position - step not in convs else []
        widths.append(width)
    if "head.0.weight" in state:
        linear = [name for name in sorted(state) if re.fullmatch(r"head\.\d\.weight", name) and state[name].dim() == 2]
        hidden = [len(state[name]) for name in linear[:-1]]
        return {"widths": [*widths, "M"] if hidden else widths, "hidden": hidden, "norm": step == 3}
    hidden_width = len(state["classifier.0.weight"]) if "classifier.0.weight" in state else 0
    return {"widths": widths, "hidden": hidden_width, "bias": "trunk.0.bias" in state}


def _counted(state: State) -> State:
    # The first versions of torch count no batches; what `*` stands for is not known by name.
    means = [name for name in state if name.endswith(".running_mean")]
    counters = [name.removesuffix(".running_mean") + COUNTER for name in means]
    return {**dict.fromkeys(counters, torch.tensor(0)), **state} if state.keys().isdisjoint(counters) else dict(state)


LAYOUT = Layout(
    "VGG of the pruning study",
    tables=[
        [("feature.*", "trunk.*"), *_HIDDEN],
        [("feature.*", "trunk.*"), *_LINEAR],
        *([("features.module.*", "trunk.*"), *head] for head in _HEADS),
    ],
    older=[[("features.*", "trunk.*"), *rows] for rows in (_LINEAR, *_HEADS)],
    official=[r"(feature|features|features\.module)\.0\.weight", r"classifier(\.\d+)?\.weight"],
    ours=[r"trunk\.0\.weight", r"(classifier|head)(\.\d+)?\.weight"],
    unpack=_counted,
    pixels=_pixels,
    options=_options,
)
