"""Official Mean Teacher checkpoints of CIFAR's shake-shake ResNet <-> our names.

Reference: "Mean teachers are better role models", arXiv 1703.01780; layout of CuriousAI/mean-teacher at 546348ff,
pytorch.
"""

from models.official.layout import BATCH_NORM, WEIGHT, WEIGHT_BIAS, Layout, Maybe, Row

_BLOCK = "layer{stage+1}.{block}", "stages.{stage}.{block}"


def _branch(letter: str, number: int) -> list[Row]:
    theirs, ours = _BLOCK[0], f"{_BLOCK[1]}.branches.{number}"
    return [
        row
        for i in (1, 2)
        for row in (
            (f"{theirs}.conv_{letter}{i}", f"{ours}.conv{i}", WEIGHT),
            (f"{theirs}.bn_{letter}{i}", f"{ours}.norm{i}", BATCH_NORM),
        )
    ]


LAYOUT = Layout(
    "Mean Teacher",
    tables=[
        [
            ("conv1", "stem", WEIGHT),
            *_branch("a", 0),
            *_branch("b", 1),
            Maybe(
                [
                    ("layer1.0.downsample.0", "stages.0.0.shortcut.0", WEIGHT),
                    ("layer1.0.downsample.1", "stages.0.0.shortcut.1", BATCH_NORM),
                ]
            ),
            ("layer{later+2}.0.downsample.conv", "stages.{later+1}.0.shortcut.conv", WEIGHT_BIAS),
            ("layer{later+2}.0.downsample.bn", "stages.{later+1}.0.shortcut.norm", BATCH_NORM),
            ("fc1", "head", WEIGHT_BIAS),
            ("fc2", "consistency_head", WEIGHT_BIAS),
        ]
    ],
    official=[r"layer1\.0\.conv_a1\.weight", r"layer1\.0\.conv_b1\.weight", r"fc2\.weight"],
    ours=[r"stages\.0\.0\.branches\.0\.conv1\.weight"],
    pixels={"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
)
