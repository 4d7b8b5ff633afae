"""Official DRNet checkpoints (MindSpore names) <-> ours.

Three layouts: the classifier, the predictor, and both in one file under `classifier.` and `predictor.`, which is the
whole network. Ours has a temperature and the counters of PyTorch's batch norms besides, which the official one lacks.

Reference: "Dynamic Resolution Network", arXiv 2106.02898; layout of mindspore-ai/models at eab643f5,
research/cv/DRNet.
"""

import torch

from models.official.layout import SAME, WEIGHT, WEIGHT_BIAS, Layout, Maybe, State, Table, inside
from models.pixels import IMAGENET

_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}
_COUNTER, _TEMPERATURE = "num_batches_tracked", "selection.temperature"


def _resnet(convs: int, theirs: str = "", mine: str = "") -> Table:
    """A ResNet of blocks of so many convolutions, the names of whose norms go on like this."""
    block, first = "layer{stage+1}.{block}", "layer{stage+1}.0"
    return [
        ("conv1", SAME, WEIGHT),
        (f"bn1{theirs}", f"bn1{mine}", _NORM),
        *((f"{block}.conv{i + 1}", SAME, WEIGHT) for i in range(convs)),
        *((f"{block}.bn{i + 1}{theirs}", f"{block}.bn{i + 1}{mine}", _NORM) for i in range(convs)),
        # A stage that changes neither width nor size has no convolution on its shortcut.
        Maybe(
            [
                (f"{first}.down_sample_layer.0", f"{first}.downsample.0", WEIGHT),
                (f"{first}.down_sample_layer.1{theirs}", f"{first}.downsample.1{mine}", _NORM),
            ],
            per="stage",
        ),
        ("end_point", "fc", WEIGHT_BIAS),
    ]


_CLASSIFIER, _PREDICTOR = _resnet(3, ".bn_{Set}", ".sets.{Set}"), _resnet(2)
_WHOLE: Table = [
    *inside(_CLASSIFIER, "classifier", "classifier"),
    *inside(_PREDICTOR, "predictor", "predictor"),
    (_TEMPERATURE, SAME),
]


def _with_constants(state: State) -> State:
    means = [name.removesuffix("moving_mean") for name in state if name.endswith(".moving_mean")]
    constants = {f"{norm}{_COUNTER}": torch.tensor(0) for norm in means}
    if any(name.startswith(("classifier.", "predictor.")) for name in state):
        constants[_TEMPERATURE] = torch.tensor(1.0)
    return state | constants


def _without_constants(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith((_COUNTER, _TEMPERATURE))}


LAYOUT = Layout(
    "DRNet",
    tables=[_WHOLE, _CLASSIFIER, _PREDICTOR],
    official=[r"((classifier|predictor)\.)?end_point\.weight", r".*bn1\.(bn_0\.)?moving_mean"],
    ours=[r"(classifier\.)?bn1\.sets\.0\.running_mean"],
    unpack=_with_constants,
    pack=_without_constants,
    pixels=IMAGENET | {"size": (224, 224), "interpolation": "bilinear", "crop": 0.875},
)
