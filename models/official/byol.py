"""Official BYOL checkpoints, of JAX and Haiku <-> our names; the names are those of `models.official.haiku`.

Convolutions are stored as [height, width, in, out] and linear maps as [in, out]. Running averages are the corrected
ones. Haiku pads strided convolutions on one side more than on the other, torch on both alike, so that outputs differ a
little. The teacher's predictor and the classifier that watched the training are left out.

Reference: "Bootstrap Your Own Latent", arXiv 2006.07733; layout of google-deepmind/deepmind-research at f5de0ede, byol.
"""

from torch import Tensor

from models.official.layout import COUNTER, Layout, Maybe, Row, State, Table
from models.pixels import IMAGENET


def _norm(tree: str, theirs: str, ours: str) -> list[Row]:
    return [
        (f"{tree}_params.{theirs}.scale", f"{ours}.weight"),
        (f"{tree}_params.{theirs}.offset", f"{ours}.bias"),
        (f"{tree}_state.{theirs}.mean_ema.average", f"{ours}.running_mean"),
        (f"{tree}_state.{theirs}.var_ema.average", f"{ours}.running_var"),
        (f"{tree}_state.{theirs}{COUNTER}", f"{ours}{COUNTER}"),
    ]


def _head(tree: str, theirs: str, ours: str) -> list[Row]:
    return [
        (f"{tree}_params.{theirs}.linear.w", f"{ours}.0.weight"),
        (f"{tree}_params.{theirs}.linear.b", f"{ours}.0.bias"),
        *_norm(tree, f"{theirs}.batch_norm", f"{ours}.1"),
        (f"{tree}_params.{theirs}.linear_1.w", f"{ours}.3.weight"),
    ]


def _side(tree: str, ours: str) -> Table:
    theirs, mine = "encoder.block_group_{stage}.block_", f"{ours}.backbone.layer{{stage+1}}."
    return [
        (f"{tree}_params.encoder.initial_conv.w", f"{ours}.backbone.conv1.weight"),
        *_norm(tree, "encoder.initial_batchnorm", f"{ours}.backbone.bn1"),
        (f"{tree}_params.{theirs}{{block}}.conv_{{layer}}.w", f"{mine}{{block}}.conv{{layer+1}}.weight"),
        *_norm(tree, f"{theirs}{{block}}.batchnorm_{{layer}}", f"{mine}{{block}}.bn{{layer+1}}"),
        Maybe(
            [
                (f"{tree}_params.{theirs}0.shortcut_conv.w", f"{mine}0.downsample.0.weight"),
                *_norm(tree, f"{theirs}0.shortcut_batchnorm", f"{mine}0.downsample.1"),
            ],
            per="stage",
        ),
        *_head(tree, "projector", f"{ours}.projector"),
    ]


def _as_torch_has_it(state: State) -> State:
    def turned(name: str, value: Tensor) -> Tensor:
        if name.endswith(".w"):
            return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        return value.flatten() if name.endswith((".scale", ".offset", ".average")) else value

    return {name: turned(name, value).contiguous() for name, value in state.items()}


def _as_haiku_has_it(state: State) -> State:
    def turned(name: str, value: Tensor) -> Tensor:
        if name.endswith(".w"):
            return value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T
        if name.endswith((".scale", ".offset", ".average")):
            return value.reshape(*(1, 1, 1) if ".encoder." in name else (1,), -1)
        return value

    return {name: turned(name, value).contiguous() for name, value in state.items() if not name.endswith(COUNTER)}


LAYOUT = Layout(
    "BYOL",
    tables=[[*_side("online", "student"), *_head("online", "predictor", "predictor"), *_side("target", "teacher")]],
    official=[r"online_params\.encoder\.initial_conv\.w", r"target_params\..*"],
    ours=[r"student\.backbone\..*", r"predictor\.3\.weight", r"!predictor\.3\.bias"],
    left_out={
        "averages before their correction": r".*_ema\.(hidden|counter)",
        "the classifier that watched the training": r".*\.classifier\.[wb]",
        "the teacher's predictor, which has no use": r"target_(params|state)\.predictor\..*",
    },
    unpack=_as_torch_has_it,
    pack=_as_haiku_has_it,
    pixels=IMAGENET | {"size": (224, 224), "interpolation": "bicubic", "crop": 0.875},
    published="student",
)
