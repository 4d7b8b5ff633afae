"""Official CONTAINER checkpoints <-> our names.

A block with self-attention calls its depthwise convolution `conv`, one without calls it `attn`.

Reference: "Container: Context Aggregation Network", arXiv 2106.01401; layout of allenai/container at 443be8a.
"""

from models.official.layout import BATCH_NORM, SAME, WEIGHT_BIAS, Layout, Maybe
from models.pixels import IMAGENET

_BLOCK, _OURS = "blocks{stage+1}.{block}", "stages.{stage}.blocks.{block}"

LAYOUT = Layout(
    "CONTAINER",
    tables=[
        [
            ("patch_embed1.proj", "stem.proj", WEIGHT_BIAS),
            ("patch_embed1.norm", "stem.norm", WEIGHT_BIAS),
            ("patch_embed{later+2}.proj", "stages.{later+1}.downsample.proj", WEIGHT_BIAS),
            ("patch_embed{later+2}.norm", "stages.{later+1}.downsample.norm", WEIGHT_BIAS),
            (f"{_BLOCK}.pos_embed", f"{_OURS}.position", WEIGHT_BIAS),
            (f"{_BLOCK}.norm1", f"{_OURS}.norm1", BATCH_NORM),
            (f"{_BLOCK}.conv1", f"{_OURS}.aggregation.proj_in", WEIGHT_BIAS),
            Maybe([(f"{_BLOCK}.attn", f"{_OURS}.aggregation.static", WEIGHT_BIAS)], per="stage block"),
            Maybe(
                [
                    (f"{_BLOCK}.conv", f"{_OURS}.aggregation.mixing.static", WEIGHT_BIAS),
                    (f"{_BLOCK}.sa_weight", f"{_OURS}.aggregation.mixing.logit"),
                ],
                per="stage block",
            ),
            (f"{_BLOCK}.conv2", f"{_OURS}.aggregation.proj_out", WEIGHT_BIAS),
            (f"{_BLOCK}.norm2", f"{_OURS}.norm2", BATCH_NORM),
            (f"{_BLOCK}.mlp.fc1", f"{_OURS}.mlp.fc1", WEIGHT_BIAS),
            (f"{_BLOCK}.mlp.fc2", f"{_OURS}.mlp.fc2", WEIGHT_BIAS),
            ("norm", SAME, BATCH_NORM),
            Maybe([("head", "head.fc", WEIGHT_BIAS)]),
        ]
    ],
    official=[r"blocks1\.0\.pos_embed\.weight", r"patch_embed1\.proj\.weight"],
    ours=[r"stages\.0\.blocks\.0\.aggregation\.proj_in\.weight"],
    pixels=IMAGENET | {"size": (224, 224), "interpolation": "bicubic", "crop": 0.875},
)
