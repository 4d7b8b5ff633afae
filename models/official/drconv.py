"""Official ShuffleNetV2-DRConv checkpoints <-> `models.backbones.shufflenet_drconv`.

Reference: "Dynamic Region-Aware Convolution", arXiv 2003.12243; layout of megvii-research/DRConv at 063a8e5e.
"""

from models.official.layout import BATCH_NORM, SAME, WEIGHT, WEIGHT_BIAS, Layout, holds, within

_NORM = within("bn", "bn", BATCH_NORM)
_BIASED = holds("conv.weight", "conv.bias") | _NORM
_PLAIN = holds("conv.weight") | _NORM
_DYNAMIC = (
    {"conv.weight": "conv.generator.weight"} | within("conv.routing_fc", "conv.generator.routing", WEIGHT_BIAS) | _NORM
)
_THEIRS, _OURS = "stage{stage+1}_block{block+1}", "stages.{stage}.{block}"

LAYOUT = Layout(
    "ShuffleNetV2-DRConv",
    tables=[
        [
            ("conv_first", "stem", _BIASED),
            (f"{_THEIRS}.masknet", f"{_OURS}.guide", WEIGHT),
            (f"{_THEIRS}.conva_right", f"{_OURS}.expand", _DYNAMIC),
            (f"{_THEIRS}.convb_right", f"{_OURS}.depthwise", _PLAIN),
            (f"{_THEIRS}.convc_right", f"{_OURS}.project", _DYNAMIC),
            ("stage{stage+1}_block1.conva_left", "stages.{stage}.0.shortcut.0", _PLAIN),
            ("stage{stage+1}_block1.convb_left", "stages.{stage}.0.shortcut.1", _PLAIN),
            ("conv_last", SAME, _BIASED),
            ("classifier", "head.fc", WEIGHT_BIAS),
        ]
    ],
    official=[r"stage\d+_block\d+\.masknet\.weight"],
    ours=[r"stages\.\d+\.\d+\.expand\.conv\.generator\.weight"],
)
