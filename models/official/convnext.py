"""Official ConvNeXt checkpoints <-> timm's names.

Three layouts of the published code: the classifier, the isotropic classifier, and the dense backbone of the detection
and segmentation code, whose keys begin with `backbone.` inside a detector's checkpoint.

Reference: "A ConvNet for the 2020s", arXiv 2201.03545; layout of facebookresearch/ConvNeXt at 048efcea.
"""

from models.official.layout import SAME, WEIGHT_BIAS, Layout, Maybe, Row, State, Table, inside
from models.pixels import IMAGENET

# What the toolboxes put next to the backbone in a detector's or segmenter's checkpoint.
_TOOLBOX = r"(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head)\..*"


def block(official: str, ours: str) -> list[Row | Maybe]:
    """Rows of blocks, by the beginning of their names."""
    return [
        (f"{official}.dwconv", f"{ours}.conv_dw", WEIGHT_BIAS),
        (f"{official}.norm", f"{ours}.norm", WEIGHT_BIAS),
        (f"{official}.pwconv1", f"{ours}.mlp.fc1", WEIGHT_BIAS),
        (f"{official}.pwconv2", f"{ours}.mlp.fc2", WEIGHT_BIAS),
        Maybe([(f"{official}.gamma", f"{ours}.gamma")]),
    ]


STAGES: Table = [
    ("downsample_layers.0.0", "stem.0", WEIGHT_BIAS),
    ("downsample_layers.0.1", "stem.1", WEIGHT_BIAS),
    Maybe(
        [
            ("downsample_layers.{later+1}.0", "stages.{later+1}.downsample.0", WEIGHT_BIAS),
            ("downsample_layers.{later+1}.1", "stages.{later+1}.downsample.1", WEIGHT_BIAS),
        ]
    ),
    *block("stages.{stage}.{block}", "stages.{stage}.blocks.{block}"),
]
_CLASSIFIER: Table = [("norm", "head.norm", WEIGHT_BIAS), Maybe([("head", "head.fc", WEIGHT_BIAS)])]
_ISOTROPIC: Table = [("stem", SAME, WEIGHT_BIAS), *block("blocks.{block}", "blocks.{block}"), *_CLASSIFIER]
_DENSE: Table = [*STAGES, Maybe([("norm{level}", SAME, WEIGHT_BIAS)], per="level")]


def as_linear(state: State) -> State:
    """Pointwise weights as linear layers have them, also those of 1x1 convolutions."""
    return {
        name: value.flatten(1) if ".pwconv" in name and name.endswith(".weight") else value
        for name, value in state.items()
    }


_TABLES: list[Table] = [[*STAGES, *_CLASSIFIER], _ISOTROPIC, _DENSE]
_BLOCKS = r"(stages\.\d+|blocks)\.\d+\.dwconv\.weight"
LAYOUT = Layout(
    "ConvNeXt",
    tables=_TABLES,
    older=[inside(table, "backbone", "") for table in _TABLES],
    # A whole detector or segmenter is another system's.
    official=[rf"(backbone\.)?{_BLOCKS}", r"!roi_head\.bbox_head\..*", r"!decode_head\.psp_modules\..*"],
    ours=[r"(stages\.\d+\.blocks|blocks)\.\d+\.conv_dw\.weight"],
    left_out={"all but the backbone": _TOOLBOX},
    pack=as_linear,
    pixels=IMAGENET | {"interpolation": "bicubic"},
)
