"""Official checkpoints of UperNet with ConvNeXt <-> our names.

The backbone's layout is that of `models.official.convnext`, behind `backbone.`; of the heads only names differ.

Reference: "A ConvNet for the 2020s", arXiv 2201.03545; layout of facebookresearch/ConvNeXt at 048efcea,
`semantic_segmentation`, on MMSegmentation's heads.
"""

from models.official.convnext import STAGES, as_linear
from models.official.layout import BATCH_NORM, SAME, WEIGHT, WEIGHT_BIAS, Layout, inside, within
from models.pixels import IMAGENET

_CONV = within("conv", "0", WEIGHT) | within("bn", "1", BATCH_NORM)

LAYOUT = Layout(
    "UperNet",
    tables=[
        [
            *inside(STAGES, "backbone", "backbone"),
            *((f"backbone.norm{level}", SAME, WEIGHT_BIAS) for level in range(4)),
            ("decode_head.psp_modules.{pool}.1", "head.pools.{pool}.1", _CONV),
            ("decode_head.bottleneck", "head.context", _CONV),
            ("decode_head.lateral_convs.{level}", "head.laterals.{level}", _CONV),
            ("decode_head.fpn_convs.{level}", "head.smooths.{level}", _CONV),
            ("decode_head.fpn_bottleneck", "head.fusion", _CONV),
            ("decode_head.conv_seg", "head.classifier", WEIGHT_BIAS),
            ("auxiliary_head.convs.0", "auxiliary.conv", _CONV),
            ("auxiliary_head.conv_seg", "auxiliary.classifier", WEIGHT_BIAS),
        ]
    ],
    official=[r"decode_head\.psp_modules\.\d+\.1\.conv\.weight", r"backbone\.stages\.\d+\.\d+\.dwconv\.weight"],
    ours=[r"head\.pools\.\d+\.1\.0\.weight", r"backbone\.stages\.\d+\.blocks\.\d+\.conv_dw\.weight"],
    pack=as_linear,
    pixels=IMAGENET,
)
