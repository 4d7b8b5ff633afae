"""ImageNet checkpoints of HRNet, official or timm's <-> the trunk of our networks.

Dense prediction starts from them. The layers of classification are left out, with a warning.

Reference: "Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919; layout of
HRNet-Image-Classification, which is timm's.
"""

from models.official.hrnet import trunk
from models.official.layout import Layout
from models.pixels import IMAGENET

# What follows the trunk. The final layer of a pose network is not in two parts.
_CLASSIFICATION = r"(incre_modules|downsamp_modules|final_layer\.[01]|classifier)\..*"
# The new branch of the second stage, which only HRNets have.
_SIGN = r"transition1\.1\.0\.0\.weight"

LAYOUT = Layout(
    "ImageNet HRNet",
    tables=[trunk()],
    # Networks of other tasks go on otherwise.
    official=[_SIGN, r"!exit1\..*", r"!last_layer\..*", r"!final_layer\.(weight|bias)"],
    ours=[rf"backbone\.{_SIGN}", r"!(?!backbone\.).*"],
    left_out={"the layers of classification": _CLASSIFICATION},
    pixels=IMAGENET,
)
