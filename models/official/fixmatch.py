"""Checkpoints of the PyTorch port of FixMatch <-> our names of its wide ResNet.

In these networks the first norm of the second and third stage is never used: `WideResNet` with `dead_preact`.

Reference: "FixMatch", arXiv 2001.07685; layout of kekmodel/FixMatch-pytorch at 040be3b8.
"""

from models.official.layout import BATCH_NORM, WEIGHT, WEIGHT_BIAS, Layout, Maybe, State
from models.pixels import Stated

_BLOCK = "block{stage+1}.layer.{block}", "stages.{stage}.{block}"
# By the number of classes.
_PIXELS: dict[int, Stated] = {
    10: {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)},
    100: {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)},
}


def _pixels(state: State) -> Stated | None:
    return _PIXELS.get(len(state["fc.bias"]))


LAYOUT = Layout(
    "FixMatch",
    tables=[
        [
            ("conv1", "stem", WEIGHT),
            *((f"{_BLOCK[0]}.bn{i}", f"{_BLOCK[1]}.norm{i}", BATCH_NORM) for i in (1, 2)),
            *((f"{_BLOCK[0]}.conv{i}", f"{_BLOCK[1]}.conv{i}", WEIGHT) for i in (1, 2)),
            Maybe([("block{stage+1}.layer.0.convShortcut", "stages.{stage}.0.shortcut", WEIGHT)], per="stage"),
            ("bn1", "norm", BATCH_NORM),
            ("fc", "head", WEIGHT_BIAS),
        ]
    ],
    official=[r"block1\.layer\.0\.conv1\.weight", r"fc\.weight"],
    ours=[
        r"stages\.0\.0\.norm1\.weight",
        r"stages\.0\.0\.conv2\.weight",
        r"stem\.weight",
        r"!stages\.0\.0\.conv3\.weight",
    ],
    pixels=_pixels,
)
