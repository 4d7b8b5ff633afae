"""Layers of a ConvNeXt as its authors count them for layer-wise learning-rate decay.

timm counts every block as a layer; the published fine-tuning counts three blocks of the long stage as one and shares
an id between a stage and the downsampling before it, which gives other learning rates.

Reference: "A ConvNet for the 2020s", arXiv 2201.03545, appendix A (layer decay), and its published training code.
"""

import re

from models.mistakes import Mistake

# timm joins the first two names by an underscore where it hands out feature maps.
_STEM = re.compile(r"stem[._]")
_DOWNSAMPLE = re.compile(r"stages[._](\d+)\.downsample\.")
_BLOCK = re.compile(r"stages[._](\d+)\.blocks\.(\d+)\.")


def layer_wise_id(name: str, num_layers: int = 12) -> int:
    """Layer of a parameter: 0 the stem ... `num_layers` the last stage, `num_layers` + 1 norms and heads.

    Args:
        name: Name of a parameter inside timm's ConvNeXt, its feature extractor or our dense one.
        num_layers: 12 for the published classification recipes and for backbones with 27 blocks in the third stage,
            6 for those with 9.

    Returns:
        Layer id; the published scale of the learning rate is `decay ** (num_layers + 1 - id)`.

    Raises:
        Mistake: The third stage has more blocks than `num_layers` has room for.
    """
    if _STEM.match(name):
        return 0
    if match := _DOWNSAMPLE.match(name):
        return (0, 2, 3, num_layers)[int(match[1])]
    if match := _BLOCK.match(name):
        stage, block = int(match[1]), int(match[2])
        layer = (1, 2, 3 + block // 3, num_layers)[stage]
        if layer > num_layers:
            raise Mistake(f"{name} would be layer {layer} of {num_layers}: a network this deep needs num_layers=12")
        return layer
    return num_layers + 1


def stage_wise_id(name: str, num_layers: int = 12) -> int:
    """Layer of a parameter: 0 stem and downsampling, i + 1 stage i, `num_layers` + 1 norms and heads.

    Args:
        name: Name of a parameter inside timm's ConvNeXt, its feature extractor or our dense one.
        num_layers: 12, or 6 for a backbone with 9 blocks in the third stage; only the distance to the head depends
            on it.

    Returns:
        Layer id; the published scale of the learning rate is `decay ** (num_layers + 1 - id)`.
    """
    if _STEM.match(name) or _DOWNSAMPLE.match(name):
        return 0
    if match := _BLOCK.match(name):
        return int(match[1]) + 1
    return num_layers + 1
