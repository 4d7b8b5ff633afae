"""Two-stage detectors of mmdetection on ConvNeXt <-> ours.

Background moves from the last class logit to the first; everything else keeps its shape. Where torchvision's modules
number what has weights together with what has none, so do our names.

Reference: layout of facebookresearch/ConvNeXt at 048efcea, `object_detection`, on mmdetection 2.3.0.
"""

import torch

from models.official.convnext import block
from models.official.layout import BATCH_NORM, WEIGHT, WEIGHT_BIAS, Layout, Maybe, Row, State, Table
from models.pixels import IMAGENET

_PYRAMID: Table = [
    ("backbone.norm{level}", "neck.norms.{level}", WEIGHT_BIAS),
    ("backbone.downsample_layers.0.0", "backbone.body.stem_0", WEIGHT_BIAS),
    ("backbone.downsample_layers.0.1", "backbone.body.stem_1", WEIGHT_BIAS),
    ("backbone.downsample_layers.{later+1}.0", "backbone.body.stages_{later+1}.downsample.0", WEIGHT_BIAS),
    ("backbone.downsample_layers.{later+1}.1", "backbone.body.stages_{later+1}.downsample.1", WEIGHT_BIAS),
    *block("backbone.stages.{stage}.{block}", "backbone.body.stages_{stage}.blocks.{block}"),
    ("neck.lateral_convs.{level}.conv", "neck.fpn.inner_blocks.{level}.0", WEIGHT_BIAS),
    ("neck.fpn_convs.{level}.conv", "neck.fpn.layer_blocks.{level}.0", WEIGHT_BIAS),
]
RPN: Table = [
    ("rpn_head.rpn_conv", "rpn.head.conv.0.0", WEIGHT_BIAS),
    ("rpn_head.rpn_cls", "rpn.head.cls_logits", WEIGHT_BIAS),
    ("rpn_head.rpn_reg", "rpn.head.bbox_pred", WEIGHT_BIAS),
]


def two_stage(pyramid: Table, stage: str = "", fully_connected: bool = True) -> Table:
    """Rows of a detector.

    Args:
        pyramid: Rows of its backbone and neck.
        stage: What numbers the heads' stages, if there are several.
        fully_connected: Whether the box heads are of two linear layers, or of four convolutions and one.
    """
    boxes, masks = f"roi_head.bbox_head{stage}", f"roi_head.mask_head{stage}"
    ours = f"roi_heads{stage or '.0'}"
    shared: list[Row] = [
        (f"{boxes}.shared_convs.{{conv}}.conv", f"{ours}.box_head.{{conv}}.0", WEIGHT),
        (f"{boxes}.shared_convs.{{conv}}.bn", f"{ours}.box_head.{{conv}}.1", BATCH_NORM),
        # After four convolutions and a flattening.
        (f"{boxes}.shared_fcs.0", f"{ours}.box_head.5", WEIGHT_BIAS),
    ]
    if fully_connected:
        shared = [(f"{boxes}.shared_fcs.{i}", f"{ours}.box_head.fc{6 + i}", WEIGHT_BIAS) for i in (0, 1)]
    return [
        *pyramid,
        *RPN,
        *shared,
        (f"{boxes}.fc_cls", f"{ours}.box_predictor.cls_score", WEIGHT_BIAS),
        (f"{boxes}.fc_reg", f"{ours}.box_predictor.bbox_pred", WEIGHT_BIAS),
        Maybe(
            [
                (f"{masks}.convs.{{conv}}.conv", f"{ours}.mask_head.{{conv}}.0", WEIGHT_BIAS),
                (f"{masks}.upsample", f"{ours}.mask_predictor.conv5_mask", WEIGHT_BIAS),
                (f"{masks}.conv_logits", f"{ours}.mask_predictor.mask_fcn_logits", WEIGHT_BIAS),
            ]
        ),
    ]


def background_first(state: State) -> State:
    """Official weights with the background's logit where ours have it."""
    return {name: torch.roll(value, 1, 0) if ".fc_cls." in name else value for name, value in state.items()}


def background_last(state: State) -> State:
    """The inverse of `background_first`."""
    return {name: torch.roll(value, -1, 0) if ".fc_cls." in name else value for name, value in state.items()}


LAYOUT = Layout(
    "mmdetection's two-stage ConvNeXt",
    tables=[two_stage(_PYRAMID, stage, linear) for stage in ("", ".{refinement}") for linear in (True, False)],
    official=[r"roi_head\.bbox_head\..*", r"!neck\.lateral_convs\.6\..*"],
    ours=[r"roi_heads\.0\..*", r"backbone\.body\.stem_0\.weight"],
    unpack=background_first,
    pack=background_last,
    pixels=IMAGENET,
)
