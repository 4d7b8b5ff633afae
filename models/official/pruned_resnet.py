"""Official checkpoints of pruned and unpruned ResNets of small images <-> our names.

Those of ImageNet have timm's names already, which are those of the networks in `models.backbones.resnet_pruned`.

Reference: "Rethinking the Value of Network Pruning", arXiv 1810.05270; layout of
Eric-mingjie/rethinking-network-pruning at 2ac473d7.
"""

import re

from models.official.layout import BATCH_NORM, WEIGHT, WEIGHT_BIAS, Layout, State
from models.pixels import CIFAR

_BLOCK = "layer{stage+1}.{block}", "stages.{stage}.{block}"


def _options(state: State) -> dict[str, object]:
    convs = sorted((name for name in state if name.endswith(".conv1.weight")), key=_numbers)
    return {"widths": [len(state[name]) for name in convs]}


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


LAYOUT = Layout(
    "ResNet of the pruning study",
    tables=[
        [
            ("conv1", "stem.conv", WEIGHT),
            ("bn1", "stem.norm", BATCH_NORM),
            *((f"{_BLOCK[0]}.conv{i}", f"{_BLOCK[1]}.conv{i}", WEIGHT) for i in (1, 2)),
            *((f"{_BLOCK[0]}.bn{i}", f"{_BLOCK[1]}.norm{i}", BATCH_NORM) for i in (1, 2)),
            ("fc", "head", WEIGHT_BIAS),
        ]
    ],
    official=[
        r"bn1\.weight",
        r"layer3\.0\.conv2\.weight",
        r"!layer4\..*",
        r"!layer\d+\.\d+\.(conv3|downsample|shortcut)\..*",
    ],
    ours=[r"stem\.norm\.weight", r"stages\.2\.0\.conv2\.weight", r"!stages\.0\.0\.conv3\.weight"],
    pixels=CIFAR,
    options=_options,
)
