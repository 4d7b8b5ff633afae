"""Official HRNet checkpoints of segmentation and pose estimation <-> our names.

Shapes do not differ. Published segmentation training wraps the network, so the keys of its checkpoints begin with
`model.`. ImageNet checkpoints, which have the trunk's names too, are those of `models.official.hrnet_imagenet`.

Reference: HRNet-Semantic-Segmentation (branch pytorch-v1.1) and deep-high-resolution-net.pytorch at 6f69e467.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from models.official import LayoutError, check_keys, some

TRUNK = re.compile(r"(conv[12]|bn[12]|layer1|transition[1-3]|stage[2-4])\.")
_WRAPPER, _TRUNK = "model.", "backbone."
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Official names of the ends and ours.
_SEGMENTATION = {
    "last_layer.0.": "head.convs.0.0.",
    "last_layer.1.": "head.convs.0.1.",
    "last_layer.3.": "head.classifier.",
}
_POSE = {"final_layer.": "head."}


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official HRNet weights with one prediction, of segmentation or pose estimation."""
    names = {name.removeprefix(_WRAPPER) for name in state}
    ends = "last_layer.0.weight" in names or ("final_layer.weight" in names and "classifier.weight" not in names)
    return ends and "transition1.0.0.weight" in names and not any(name.startswith("exit1.") for name in names)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our HRNet segmenter or pose network."""
    ends = "head.weight" in state or "head.classifier.weight" in state
    return ends and any(name.startswith(f"{_TRUNK}stage2.") for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name, with or without `model.`.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    ours = rename(state, _SEGMENTATION | _POSE)
    check_keys(ours, _our_names(ours), "the official HRNet layout (names given are ours)")
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout, without `model.`; the inverse of `to_ours`.

    Args:
        state: Weights by our name.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    check_keys(state, _our_names(state), "our HRNet layout")
    ends = _POSE if "head.weight" in state else _SEGMENTATION
    return rename_back(state, ends)


def rename(state: Mapping[str, Tensor], ends: Mapping[str, str]) -> dict[str, Tensor]:
    """Official names to ours.

    Args:
        state: Weights by official name, with or without `model.`.
        ends: Beginnings of names after the trunk, official to ours.

    Raises:
        LayoutError: Names that are neither the trunk's nor begin so.
    """
    ours, unknown = {}, []
    for name, value in state.items():
        bare = name.removeprefix(_WRAPPER)
        if TRUNK.match(bare):
            ours[_TRUNK + bare] = value
        elif prefix := next((prefix for prefix in ends if bare.startswith(prefix)), None):
            ours[ends[prefix] + bare.removeprefix(prefix)] = value
        else:
            unknown.append(bare)
    if unknown:
        raise LayoutError(f"keys do not fit the official HRNet layout: unknown {some(sorted(unknown))}")
    return ours


def rename_back(state: Mapping[str, Tensor], ends: Mapping[str, str]) -> dict[str, Tensor]:
    """The inverse of `rename`, without `model.`."""
    official = {}
    for name, value in state.items():
        if name.startswith(_TRUNK):
            official[name.removeprefix(_TRUNK)] = value
        else:
            prefix, ours = next(pair for pair in ends.items() if name.startswith(pair[1]))
            official[prefix + name.removeprefix(ours)] = value
    return official


def trunk_names(state: Mapping[str, Tensor], prefix: str = "") -> set[str]:
    """The complete set of names of the trunk that these names belong to, at its depths.

    Args:
        state: Names of the trunk and maybe others.
        prefix: What the trunk's names begin with.
    """
    present = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    names: set[str] = set()

    def number(under: str) -> int:
        found = (re.match(rf"{re.escape(under)}\.(\d+)\.", name) for name in present)
        return max(1, 1 + max((int(match[1]) for match in found if match), default=-1))

    def layer(conv: str, norm: str) -> None:
        names.update({f"{conv}.weight", *(f"{norm}.{kind}" for kind in _NORM)})

    def maybe(conv: str, norm: str) -> None:
        # Where channels do not change there is no such convolution.
        if any(name.startswith((f"{conv}.", f"{norm}.")) for name in present):
            layer(conv, norm)

    for i in (1, 2):
        layer(f"conv{i}", f"bn{i}")
    for block in range(number("layer1")):
        for i in (1, 2, 3):
            layer(f"layer1.{block}.conv{i}", f"layer1.{block}.bn{i}")
        maybe(f"layer1.{block}.downsample.0", f"layer1.{block}.downsample.1")
    for branches in (2, 3, 4):
        for branch in range(branches - 1):
            maybe(f"transition{branches - 1}.{branch}.0", f"transition{branches - 1}.{branch}.1")
        new = f"transition{branches - 1}.{branches - 1}.0"
        layer(f"{new}.0", f"{new}.1")
        for m in range(number(f"stage{branches}")):
            module = f"stage{branches}.{m}"
            for branch in range(branches):
                for block in range(number(f"{module}.branches.{branch}")):
                    for i in (1, 2):
                        at = f"{module}.branches.{branch}.{block}"
                        layer(f"{at}.conv{i}", f"{at}.bn{i}")
            # The last module of a pose network has one output.
            for target in range(min(branches, number(f"{module}.fuse_layers"))):
                for source in range(branches):
                    fuse = f"{module}.fuse_layers.{target}.{source}"
                    if source > target:
                        layer(f"{fuse}.0", f"{fuse}.1")
                    for step in range(target - source):
                        layer(f"{fuse}.{step}.0", f"{fuse}.{step}.1")
    return {prefix + name for name in names}


def _our_names(state: Mapping[str, Tensor]) -> set[str]:
    names = trunk_names(state, _TRUNK)
    if any(name in state for name in ("head.weight", "head.bias")):
        return names | {"head.weight", "head.bias"}
    return names | head_names("head", 0)


def head_names(head: str, num_pools: int) -> set[str]:
    """Names of an exit's head (`models.layers.hrnet_exits.ExitHead`)."""
    names = {f"{head}.classifier.{kind}" for kind in ("weight", "bias")}
    for i in range(max(1, 2 * num_pools - 1)):
        names |= {f"{head}.convs.{i}.0.{kind}" for kind in ("weight", "bias")}
        names |= {f"{head}.convs.{i}.1.{kind}" for kind in _NORM}
    return names
