"""Official HRNet checkpoints of segmentation and pose estimation <-> our names.

Shapes do not differ. ImageNet checkpoints, which have the trunk's names too, are those of
`models.official.hrnet_imagenet`.

Reference: HRNet-Semantic-Segmentation (branch pytorch-v1.1) and deep-high-resolution-net.pytorch at 6f69e467.
"""

from models.official.layout import BATCH_NORM, WEIGHT, WEIGHT_BIAS, Contents, Layout, Maybe, Row, Table
from models.pixels import IMAGENET


def trunk(masked: Contents = WEIGHT) -> Table:
    """Rows of the trunk.

    Args:
        masked: What the convolutions hold that ADP-C masks.
    """

    def layer(conv: str, norm: str, contents: Contents = masked) -> list[Row]:
        return [(conv, f"backbone.{conv}", contents), (norm, f"backbone.{norm}", BATCH_NORM)]

    first = "layer1.{block}"
    rows: list[Row | Maybe] = [
        *layer("conv1", "bn1", WEIGHT),
        *layer("conv2", "bn2", WEIGHT),
        *(row for i in (1, 2, 3) for row in layer(f"{first}.conv{i}", f"{first}.bn{i}", WEIGHT)),
        # Where channels do not change there is no such convolution.
        Maybe(layer(f"{first}.downsample.0", f"{first}.downsample.1", WEIGHT), per="block"),
    ]
    for stage in (2, 3, 4):
        for branch in range(stage - 1):
            change = f"transition{stage - 1}.{branch}"
            rows.append(Maybe(layer(f"{change}.0", f"{change}.1")))
        new = f"transition{stage - 1}.{stage - 1}.0"
        rows += layer(f"{new}.0", f"{new}.1")
        for branch in range(stage):
            block = f"stage{stage}.{{module}}.branches.{branch}.{{block}}"
            rows += [row for i in (1, 2) for row in layer(f"{block}.conv{i}", f"{block}.bn{i}")]
        fused: list[list[Row]] = []
        for target in range(stage):
            fuse = f"stage{stage}.{{module}}.fuse_layers.{target}"
            finer = [f"{fuse}.{source}.{step}" for source in range(target) for step in range(target - source)]
            coarser = [f"{fuse}.{source}" for source in range(target + 1, stage)]
            fused.append([row for sum_ in (*finer, *coarser) for row in layer(f"{sum_}.0", f"{sum_}.1")])
        rows += fused[0]
        # The last module of a pose network has one output.
        rows.append(Maybe([row for target in fused[1:] for row in target], per="module"))
    return rows


def head(official: str, ours: str, convs: int = 0, masked: Contents = WEIGHT_BIAS) -> list[Row]:
    """Rows of an exit's head (`models.layers.hrnet_exits.ExitHead`).

    Args:
        official: Name of the sequence that it is there.
        ours: Our name.
        convs: How many convolutions follow layers that pool or double, the classifier not counted; 0 for a single one
            without such layers.
        masked: What the convolutions hold.
    """
    first, step = (1, 4) if convs else (0, 3)
    rows: list[Row] = []
    for i in range(convs or 1):
        rows += [
            (f"{official}.{first + step * i}", f"{ours}.convs.{i}.0", masked),
            (f"{official}.{first + step * i + 1}", f"{ours}.convs.{i}.1", BATCH_NORM),
        ]
    return [*rows, (f"{official}.{first + step * (convs or 1)}", f"{ours}.classifier", masked)]


_SIGN = r"transition1\.0\.0\.weight"
LAYOUT = Layout(
    "HRNet",
    tables=[[*trunk(), *head("last_layer", "head")], [*trunk(), ("final_layer", "head", WEIGHT_BIAS)]],
    # Those with exits and of classification are other systems'.
    official=[r"last_layer\.0\.weight|final_layer\.weight", _SIGN, r"!exit1\..*", r"!classifier\.weight"],
    ours=[r"head\.(classifier\.)?weight", r"backbone\.stage2\..*"],
    pixels=IMAGENET,
)
