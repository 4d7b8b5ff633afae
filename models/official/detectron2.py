"""RetinaNet of detectron2 on ResNet <-> ours.

Names differ, shapes do not: our anchors are in detectron2's order. Its constants (pixel mean and deviation, anchors)
are left out, and its moving average of positive anchors, which it does not save, starts where it does in training.

Reference: layout of facebookresearch/detectron2 at 82a57ce0 (v0.5).
"""

import torch

from models.detectors.retinanet import START
from models.official.layout import SAME, WEIGHT, WEIGHT_BIAS, Layout, Maybe, Row, State, holds
from models.pixels import BGR_BYTES, Stated

_AVERAGE = "positives"
_FROZEN_NORM = holds("weight", "bias", "running_mean", "running_var")
_BLOCK, _OUR_BLOCK = "backbone.bottom_up.res{stage+2}.{block}", "backbone.body.layer{stage+1}.{block}"


def _conv(official: str, ours: str, norm: str) -> list[Row]:
    return [(official, ours, WEIGHT), (f"{official}.norm", norm, _FROZEN_NORM)]


def _pixels(state: State) -> Stated:
    """The constants that older versions save, else the usual ones; a mean that falls from red to blue is of RGB."""
    if not {"pixel_mean", "pixel_std"} <= state.keys():
        return BGR_BYTES
    mean, std = (tuple(state[name].flatten().tolist()) for name in ("pixel_mean", "pixel_std"))
    return {"order": "rgb" if mean[0] > mean[-1] else "bgr", "scale": 255.0, "mean": mean, "std": std}


LAYOUT = Layout(
    "detectron2's RetinaNet",
    tables=[
        [
            *_conv("backbone.bottom_up.stem.conv1", "backbone.body.conv1", "backbone.body.bn1"),
            *_conv(f"{_BLOCK}.conv{{conv+1}}", f"{_OUR_BLOCK}.conv{{conv+1}}", f"{_OUR_BLOCK}.bn{{conv+1}}"),
            Maybe(
                _conv(f"{_BLOCK}.shortcut", f"{_OUR_BLOCK}.downsample.0", f"{_OUR_BLOCK}.downsample.1"),
                per="stage block",
            ),
            ("backbone.fpn_lateral{level+3}", "neck.fpn.inner_blocks.{level}.0", WEIGHT_BIAS),
            ("backbone.fpn_output{level+3}", "neck.fpn.layer_blocks.{level}.0", WEIGHT_BIAS),
            ("backbone.top_block.p6", "neck.fpn.extra_blocks.p6", WEIGHT_BIAS),
            ("backbone.top_block.p7", "neck.fpn.extra_blocks.p7", WEIGHT_BIAS),
            # Convolutions alternate with activations.
            ("head.cls_subnet.{2conv}", "head.classification_head.conv.{conv}.0", WEIGHT_BIAS),
            ("head.bbox_subnet.{2conv}", "head.regression_head.conv.{conv}.0", WEIGHT_BIAS),
            ("head.cls_score", "head.classification_head.cls_logits", WEIGHT_BIAS),
            ("head.bbox_pred", "head.regression_head.bbox_reg", WEIGHT_BIAS),
            (_AVERAGE, SAME),
        ]
    ],
    official=[r"head\.cls_subnet\..*"],
    ours=[_AVERAGE, r"backbone\.body\.layer1\..*"],
    left_out={"constants": r"pixel_mean|pixel_std|anchor_generator\..*"},
    unpack=lambda state: state | {_AVERAGE: torch.tensor(START)},
    pack=lambda state: {name: value for name, value in state.items() if name != _AVERAGE},
    pixels=_pixels,
)
