"""Official RANet checkpoints <-> our names.

Names differ, shapes do not. Published training wraps the network, so the keys of its checkpoints begin with `module.`.

Reference: "Resolution Adaptive Networks for Efficient Inference", arXiv 2003.07326; layout of
yangle15/RANet-pytorch at be0f25a2.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from models.official import LayoutError, check_keys, some

# Official name and ours; `#` is a number. The first rows that match decide.
_NAMES = [
    ("FirstLayer.layers.#.net.#.", "base.#.#."),
    ("FirstLayer.layers.#.0.", "base.#.conv."),
    ("FirstLayer.layers.#.1.", "base.#.norm."),
    ("scale_flows.#.#.layers.#.conv_normal.net.#.", "subnets.#.#.layers.#.own.#."),
    ("scale_flows.#.#.layers.#.conv_up.net.#.", "subnets.#.#.layers.#.low.#."),
    ("scale_flows.#.#.conv_last.net.#.", "subnets.#.#.last.#."),
    ("scale_flows.#.#.trans.net.#.", "subnets.#.#.transition.#."),
    ("classifier.#.m.0.net.#.", "heads.#.conv1.#."),
    ("classifier.#.m.1.net.#.", "heads.#.conv2.#."),
    ("classifier.#.linear.", "heads.#.linear."),
]
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official RANet weights."""
    return any(re.match(r"(module\.)?scale_flows\.\d+\.\d+\.layers\.\d+\.conv_normal\.net\.", name) for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our RANet weights."""
    return any(re.match(r"subnets\.\d+\.\d+\.layers\.\d+\.own\.", name) for name in state)


def our_name(name: str) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is."""
    return _rename(name, _NAMES)


def official_name(name: str) -> str:
    """Our name of a parameter to the official one; an unknown one stays as it is."""
    return _rename(name, [(ours, official) for official, ours in _NAMES])


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name, with or without `module.`.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    ours = {our_name(name): value for name, value in bare.items()}
    if kept := sorted(name for name in bare if our_name(name) == name):
        raise LayoutError(f"keys do not fit the official RANet layout: unknown {some(kept)}")
    check_keys(ours, _our_names(ours), "the official RANet layout (names given are ours)")
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout, without `module.`; the inverse of `to_ours`.

    Args:
        state: Weights by our name.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    check_keys(state, _our_names(state), "our RANet layout")
    return {official_name(name): value for name, value in state.items()}


def _rename(name: str, names: list[tuple[str, str]]) -> str:
    for old, new in names:
        if match := re.match(re.escape(old).replace(r"\#", r"(\d+)"), name):
            for number in match.groups():
                new = new.replace("#", number, 1)
            return new + name[match.end() :]
    return name


def _our_names(state: Mapping[str, Tensor]) -> set[str]:
    """The complete set of our names of the network that these names belong to, at its depths."""

    def number(prefix: str) -> int:
        found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def has(prefix: str) -> bool:
        return any(name.startswith(f"{prefix}.") for name in state)

    names: set[str] = set()

    def convolution(conv: str, norm: str) -> None:
        names.update({f"{conv}.weight", *(f"{norm}.{kind}" for kind in _NORM)})

    imagenet = has("base.0.conv") or has("base.0.norm")
    if imagenet:
        convolution("base.0.conv", "base.0.norm")
        names.add("base.0.conv.bias")
    for i in range(int(imagenet), max(number("base"), number("subnets"))):
        convolution(f"base.{i}.0", f"base.{i}.1")
    for i in range(max(1, number("subnets"))):
        for b in range(max(1, number(f"subnets.{i}"))):
            block = f"subnets.{i}.{b}"
            fuses = b < number(f"subnets.{i - 1}")
            for layer in range(max(1, number(f"{block}.layers"))):
                for branch in ("own", "low") if fuses else ("own",):
                    bottleneck = f"{block}.layers.{layer}.{branch}"
                    convolution(f"{bottleneck}.0", f"{bottleneck}.1")
                    convolution(f"{bottleneck}.3", f"{bottleneck}.4")
            for part in ("last",) * fuses + ("transition",) * has(f"{block}.transition"):
                convolution(f"{block}.{part}.0", f"{block}.{part}.1")
    # There are as many exits as blocks in the last sub-network.
    for exit in range(max(number("heads"), max(number(f"subnets.{i}") for i in range(max(1, number("subnets")))))):
        for part in ("conv1", "conv2"):
            convolution(f"heads.{exit}.{part}.0", f"heads.{exit}.{part}.1")
        names |= {f"heads.{exit}.linear.{kind}" for kind in ("weight", "bias")}
    return names
