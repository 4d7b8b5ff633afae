"""Official ConvNeXt checkpoints <-> timm's names.

Three layouts of the published code: the classifier, the isotropic classifier, and the dense backbone of the detection
and segmentation code, whose keys begin with `backbone.` inside a detector's checkpoint.

Reference: "A ConvNet for the 2020s", arXiv 2201.03545; layout of facebookresearch/ConvNeXt at 048efcea.
"""

import re
import warnings
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from models.official import LayoutError, check_keys, some

# Official pattern, official replacement, our pattern, our replacement; the first that matches decides.
_NAMES = [
    (r"downsample_layers\.0\.", "downsample_layers.0.", r"stem\.(?=\d)", "stem."),
    (r"downsample_layers\.(\d+)\.", r"downsample_layers.\1.", r"stages\.(\d+)\.downsample\.", r"stages.\1.downsample."),
    (r"stages\.(\d+)\.(\d+)\.", r"stages.\1.\2.", r"stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"norm\.", "norm.", r"head\.norm\.", "head.norm."),
    (r"head\.", "head.", r"head\.fc\.", "head.fc."),
]
_IN_BLOCK = {"dwconv.": "conv_dw.", "pwconv1.": "mlp.fc1.", "pwconv2.": "mlp.fc2."}
_BLOCK = re.compile(r"((?:stages\.\d+\.(?:blocks\.)?|blocks\.)\d+\.)(.*)")
# What the toolboxes put next to the backbone in a detector's or segmenter's checkpoint.
_DETECTOR_PARTS = {"neck", "rpn_head", "roi_head", "bbox_head", "mask_head", "decode_head", "auxiliary_head"}


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official ConvNeXt weights."""
    blocks = r"(backbone\.)?(stages\.\d+\.\d+|blocks\.\d+)\.dwconv\."
    # The whole detector or segmenter is another system's.
    whole = any(name.startswith(("roi_head.bbox_head.", "decode_head.psp_modules.")) for name in state)
    return any(re.match(blocks, name) for name in state) and not whole


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like ConvNeXt weights in timm's naming."""
    return any(re.match(r"(stages\.\d+\.blocks|blocks)\.\d+\.conv_dw\.", name) for name in state)


def our_name(name: str) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is."""
    return _rename(name, [(old, new) for old, _, _, new in _NAMES], _IN_BLOCK)


def official_name(name: str) -> str:
    """Our name of a parameter to the official one; an unknown one stays as it is."""
    names = [(old, new) for _, new, old, _ in _NAMES]
    return _rename(name, names, {ours: official for official, ours in _IN_BLOCK.items()})


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to timm's names.

    Of a detector's checkpoint the backbone is taken, with a warning that counts what is left out.

    Args:
        state: Weights by official name.

    Returns:
        Weights by our name; pointwise weights are 2-D.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    state = _backbone(state)
    check_keys(state, _official_names(state), "the official ConvNeXt layout")
    return {our_name(name): value for name, value in state.items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in timm's names to the official layout; the inverse of `to_ours`.

    Args:
        state: Weights by our name; pointwise weights may be those of 1x1 convolutions.

    Returns:
        Weights by official name; pointwise weights are 2-D.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    official = {official_name(name): value for name, value in state.items()}
    check_keys(official, _official_names(official), "our ConvNeXt layout (names given are the official ones)")
    return {
        name: value.flatten(1) if ".pwconv" in name and name.endswith(".weight") else value
        for name, value in official.items()
    }


def _rename(name: str, names: list[tuple[str, str]], in_block: dict[str, str]) -> str:
    for old, new in names:
        if re.match(old, name):
            name = re.sub(rf"^{old}", new, name)
            break
    if match := _BLOCK.match(name):
        block, rest = match.groups()
        for old, new in in_block.items():
            if rest.startswith(old):
                return block + new + rest.removeprefix(old)
    return name


def _backbone(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    if not backbone:
        return state
    others = [name for name in state if not name.startswith("backbone.")]
    if strangers := [name for name in others if name.split(".")[0] not in _DETECTOR_PARTS]:
        raise LayoutError(f"keys do not fit a detector with a ConvNeXt backbone: unknown {some(strangers)}")
    if others:
        parts = Counter(name.split(".")[0] for name in others)
        left_out = ", ".join(f"{part} ({tensors} tensors)" for part, tensors in parts.items())
        warnings.warn(f"only the backbone is converted; left out: {left_out}", stacklevel=3)
    return backbone


def _official_names(state: Mapping[str, Tensor]) -> set[str]:
    """The complete set of names of the layout that these names belong to, at their depths."""
    blocks = {match[0] for name in state if (match := re.match(r"(stages\.\d+|blocks)\.(?=\d)", name))}
    isotropic = "blocks." in blocks
    parts = ["stem"] if isotropic else []
    if not isotropic:
        stages = 1 + max((int(stage.split(".")[1]) for stage in blocks), default=0)
        blocks |= {f"stages.{stage}." for stage in range(stages)}
        parts += [f"downsample_layers.{stage}.{layer}" for stage in range(stages) for layer in (0, 1)]
    for stage in blocks:
        numbers = [int(name.removeprefix(stage).split(".")[0]) for name in state if _is_block(name, stage)]
        for block in range(1 + max(numbers, default=0)):
            parts += [f"{stage}{block}.{part}" for part in ("dwconv", "norm", "pwconv1", "pwconv2")]
    names = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    if any(name.endswith(".gamma") for name in state):
        names |= {f"{part.removesuffix('.dwconv')}.gamma" for part in parts if part.endswith(".dwconv")}

    output_norms = {name for name in state if re.fullmatch(r"norm\d\.(weight|bias)", name)}
    if output_norms and not isotropic:
        return names | {name.split(".")[0] + kind for name in output_norms for kind in (".weight", ".bias")}
    heads = {"norm"} | {name.split(".")[0] for name in state if name.startswith("head.")}
    return names | {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}


def _is_block(name: str, stage: str) -> bool:
    return re.match(rf"{re.escape(stage)}\d+\.", name) is not None
