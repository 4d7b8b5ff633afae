"""Official checkpoints of pre-activation ResNets and DenseNets, slimmed or with single weights pruned <-> our names.

Reference: "Rethinking the Value of Network Pruning", arXiv 1810.05270; layout of
Eric-mingjie/rethinking-network-pruning at 2ac473d7. Slimmed networks say which channels of shared maps are read.
"""

import math
import re

from models.official.layout import BATCH_NORM, SAME, WEIGHT, WEIGHT_BIAS, Layout, Maybe, Row, State, holds
from models.pixels import CIFAR

_BLOCK = "layer{stage+1}.{block}", "stages.{stage}.{block}"
_LAYER = "dense{stage+1}.{layer}", "stages.{stage}.{layer}"
_TRANSITION = "trans{transition+1}", "transitions.{transition}"
_CHOSEN = holds("indexes")
_ENDS: list[Row] = [("conv1", "stem", WEIGHT), ("bn", "norm", BATCH_NORM), ("fc", "head", WEIGHT_BIAS)]


def _options(state: State) -> dict[str, object]:
    # What every convolution behind the stem reads, and the classifier; a transition comes behind all layers of a stage.
    convs = [name for name in state if re.fullmatch(r"(stages\.\d+|transitions)\.\d+\.conv\d?\.weight", name)]
    return {"widths": [state[name].shape[1] for name in [*sorted(convs, key=_place), "head.weight"]]}


def _place(name: str) -> tuple[int, float, int]:
    first, *others = (int(digits) for digits in re.findall(r"\d+", name))
    return (first, math.inf, 0) if name.startswith("transitions") else (first, others[0], (others[1:] or [0])[0])


LAYOUT = Layout(
    "slimmed network of the pruning study",
    tables=[
        [
            *_ENDS,
            *((f"{_BLOCK[0]}.bn{i}", f"{_BLOCK[1]}.norm{i}", BATCH_NORM) for i in (1, 2, 3)),
            *((f"{_BLOCK[0]}.conv{i}", f"{_BLOCK[1]}.conv{i}", WEIGHT) for i in (1, 2, 3)),
            Maybe([("layer{stage+1}.0.downsample.0", "stages.{stage}.0.shortcut", WEIGHT)], per="stage"),
            Maybe([(f"{_BLOCK[0]}.select", f"{_BLOCK[1]}.select", _CHOSEN), ("select", SAME, _CHOSEN)]),
        ],
        [
            *_ENDS,
            (f"{_LAYER[0]}.bn1", f"{_LAYER[1]}.norm", BATCH_NORM),
            (f"{_LAYER[0]}.conv1", f"{_LAYER[1]}.conv", WEIGHT),
            (f"{_TRANSITION[0]}.bn1", f"{_TRANSITION[1]}.norm", BATCH_NORM),
            (f"{_TRANSITION[0]}.conv1", f"{_TRANSITION[1]}.conv", WEIGHT),
            Maybe(
                [
                    (f"{_LAYER[0]}.select", f"{_LAYER[1]}.select", _CHOSEN),
                    (f"{_TRANSITION[0]}.select", f"{_TRANSITION[1]}.select", _CHOSEN),
                    ("select", SAME, _CHOSEN),
                ]
            ),
        ],
    ],
    official=[r"bn\.weight", r"(layer1\.0\.conv3|dense1\.0\.conv1)\.weight", r"conv1\.weight"],
    ours=[r"stages\.0\.0\.(conv3|conv)\.weight", r"norm\.weight", r"stem\.weight", r"head\.weight"],
    pixels=CIFAR,
    options=_options,
)
