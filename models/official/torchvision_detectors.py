"""torchvision's Faster R-CNN, Mask R-CNN, RetinaNet and FCOS on ResNet <-> ours.

torchvision predicts boxes and masks of the background too, which nothing reads; ours does not, so those rows are left
out, and zero on the way back. Names of released weights are older than torchvision's modules; both are understood.

Reference: torchvision 0.29, `torchvision.models.detection`.
"""

import torch

from models.official.layout import SAME, WEIGHT_BIAS, Layout, Maybe, State, Table
from models.pixels import IMAGENET

# Rows of the background.
_UNUSED_ROWS = {"box_predictor.bbox_pred": 4, "mask_predictor.mask_fcn_logits": 1}


def _pyramid(released: bool) -> Table:
    after = "" if released else ".0"
    return [
        ("backbone.body.*", SAME),
        (f"backbone.fpn.inner_blocks.{{level}}{after}", "neck.fpn.inner_blocks.{level}.0", WEIGHT_BIAS),
        (f"backbone.fpn.layer_blocks.{{level}}{after}", "neck.fpn.layer_blocks.{level}.0", WEIGHT_BIAS),
    ]


def _dense(released: bool) -> Table:
    """What RetinaNet and FCOS have in common, but for the towers of convolutions in the heads."""
    return [
        *_pyramid(released),
        ("backbone.fpn.extra_blocks.p6", "neck.fpn.extra_blocks.p6", WEIGHT_BIAS),
        ("backbone.fpn.extra_blocks.p7", "neck.fpn.extra_blocks.p7", WEIGHT_BIAS),
        ("head.classification_head.cls_logits", SAME, WEIGHT_BIAS),
        ("head.regression_head.bbox_reg", SAME, WEIGHT_BIAS),
    ]


def _retinanet(released: bool) -> Table:
    # Released weights count activations too.
    conv = "conv.{2conv}" if released else "conv.{conv}.0"
    heads = ("head.classification_head", "head.regression_head")
    return [*_dense(released), *((f"{head}.{conv}", f"{head}.conv.{{conv}}.0", WEIGHT_BIAS) for head in heads)]


def _fcos(released: bool) -> Table:
    # Convolution, norm and activation.
    towers = [f"head.{head}_head.conv.{{3conv{i}}}" for head in ("classification", "regression") for i in ("", "+1")]
    return [
        *_dense(released),
        *((tower, SAME, WEIGHT_BIAS) for tower in towers),
        ("head.regression_head.bbox_ctrness", SAME, WEIGHT_BIAS),
    ]


def _rcnn(released: bool) -> Table:
    masks = "mask_head.mask_fcn{conv+1}" if released else "mask_head.{conv}.0"
    return [
        *_pyramid(released),
        ("rpn.head.conv" if released else "rpn.head.conv.0.0", "rpn.head.conv.0.0", WEIGHT_BIAS),
        ("rpn.head.cls_logits", SAME, WEIGHT_BIAS),
        ("rpn.head.bbox_pred", SAME, WEIGHT_BIAS),
        ("roi_heads.box_head.fc6", "roi_heads.0.box_head.fc6", WEIGHT_BIAS),
        ("roi_heads.box_head.fc7", "roi_heads.0.box_head.fc7", WEIGHT_BIAS),
        ("roi_heads.box_predictor.cls_score", "roi_heads.0.box_predictor.cls_score", WEIGHT_BIAS),
        ("roi_heads.box_predictor.bbox_pred", "roi_heads.0.box_predictor.bbox_pred", WEIGHT_BIAS),
        Maybe(
            [
                (f"roi_heads.{masks}", "roi_heads.0.mask_head.{conv}.0", WEIGHT_BIAS),
                *(
                    (f"roi_heads.mask_predictor.{part}", f"roi_heads.0.mask_predictor.{part}", WEIGHT_BIAS)
                    for part in ("conv5_mask", "mask_fcn_logits")
                ),
            ]
        ),
    ]


def _without_background(state: State) -> State:
    return {name: value[_unused_rows(name) :] if _unused_rows(name) else value for name, value in state.items()}


def _with_background(state: State) -> State:
    padded = {}
    for name, value in state.items():
        rows = _unused_rows(name)
        padded[name] = torch.cat([value.new_zeros(rows, *value.shape[1:]), value]) if rows else value
    return padded


def _unused_rows(name: str) -> int:
    return next((rows for part, rows in _UNUSED_ROWS.items() if part in name), 0)


LAYOUT = Layout(
    "torchvision detector",
    tables=[table(released=False) for table in (_rcnn, _retinanet, _fcos)],
    older=[table(released=True) for table in (_rcnn, _retinanet, _fcos)],
    official=[r"backbone\.fpn\.inner_blocks\..*"],
    ours=[
        r"(roi_heads\.0|head\.classification_head)\..*",
        r"backbone\.body\.conv1\.weight",
        r"!positives|roi_heads\.1\..*|neck\.blocks\..*",
    ],
    left_out={"counters of frozen norms": r".*\.num_batches_tracked"},
    unpack=_without_background,
    pack=_with_background,
    pixels=IMAGENET,
)
