"""Official checkpoints of the ResNet-50 that regression prunes <-> ours, which has timm's names but for selections.

Reference: "Rethinking the Value of Network Pruning", arXiv 1810.05270; layout of
Eric-mingjie/rethinking-network-pruning at 2ac473d7. Its weights say which channels each block reads.
"""

from models.official.layout import BATCH_NORM, SAME, WEIGHT, WEIGHT_BIAS, Layout, Maybe, holds
from models.pixels import IMAGENET

_BLOCK = "layer{stage+1}.{block}"

LAYOUT = Layout(
    "ResNet-50-2x",
    tables=[
        [
            ("conv1", SAME, WEIGHT),
            ("bn1", SAME, BATCH_NORM),
            (f"{_BLOCK}.selection", f"{_BLOCK}.conv1.select", holds("indexes")),
            *((f"{_BLOCK}.conv{i}", SAME, WEIGHT) for i in (1, 2, 3)),
            *((f"{_BLOCK}.bn{i}", SAME, BATCH_NORM) for i in (1, 2, 3)),
            Maybe(
                [
                    ("layer{stage+1}.0.downsample.0", SAME, WEIGHT_BIAS),
                    ("layer{stage+1}.0.downsample.1", SAME, BATCH_NORM),
                ],
                per="stage",
            ),
            ("fc", SAME, WEIGHT_BIAS),
        ]
    ],
    official=[r"layer1\.0\.selection\.indexes", r"fc\.weight"],
    ours=[r"layer1\.0\.conv1\.select\.indexes", r"fc\.weight"],
    pixels=IMAGENET | {"size": (224, 224), "interpolation": "bilinear", "crop": 0.875},
)
