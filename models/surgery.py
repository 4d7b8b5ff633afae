"""Layers in place of layers: dynamic ones in place of the convolutions, or of the attention, of any timm network.

What the papers on dynamic kernels share is a host: some of its convolutions become dynamic, the rest stays. Which ones
is a choice by kind, kernel size, stage, block or name. A layer that shares something with the others of its block, as
CondConv does its routing, is a `BlockMember`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from models.mistakes import Mistake

Kind = Literal["pointwise", "depthwise", "grouped", "dense"]
# Convolutions of squeeze-and-excitation are its linear layers: no paper makes them dynamic.
SQUEEZE_EXCITE = ("*.se.*",)
# `layer1.0.conv1`, `blocks.4.0.conv_pw`: the block is what comes before the first name after a number.
_BLOCK = re.compile(r"(?P<stage>[^\d.][^.]*(?:\.[^\d.][^.]*)*?(?:\.\d+)*?)\.\d+(?=\.[^\d.])")


@dataclass(frozen=True)
class Site:
    """Where a convolution stands in its network.

    Args:
        name: Dotted name.
        kind: `pointwise` (1x1), `depthwise`, `grouped`, or `dense` for any other.
        kernel_size: Side of a square kernel; height and width of another one.
        stage: Dotted name of its stage, or empty outside of the blocks.
        block: Dotted name of its block, or empty.
    """

    name: str
    kind: Kind
    kernel_size: int | tuple[int, ...]
    stage: str
    block: str


@runtime_checkable
class BlockMember(Protocol):
    """A layer that has something in common with the others of its block."""

    def join(self, block: nn.Module) -> None:
        """Takes or makes what the block's layers share; called once for each layer when all are in their places."""


class PointwiseClassifier(nn.Module):
    """A classifier that is a 1x1 convolution over the pooled features.

    Args:
        layer: [B, C, 1, 1] to [B, K, 1, 1].
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        """Pooled features [B, C] to logits [B, K]."""
        return self.layer(features[:, :, None, None]).flatten(1)


def convolution_sites(network: nn.Module) -> list[Site]:
    """Where the plain convolutions of a network stand, in its order.

    Stages and blocks are those of timm's `group_matcher`; a network without one is read by its names.
    """
    return [
        Site(name, _kind(module), _square(module.kernel_size), _group(network, name, True), _group(network, name))
        for name, module in network.named_modules()
        if name and type(module) in (nn.Conv2d, Conv2dSame)
    ]


def replace(
    network: nn.Module,
    make: Callable[[nn.Conv2d], nn.Module],
    *,
    kinds: Sequence[Kind] | None = None,
    kernel_sizes: Sequence[int] | None = None,
    stages: Sequence[int] | None = None,
    last_blocks: int | None = None,
    names: Sequence[str] | None = None,
    exclude: Sequence[str] = SQUEEZE_EXCITE,
    classifier: bool = False,
) -> list[str]:
    """Puts a dynamic layer in the place of each selected convolution, in place.

    A convolution is replaced when every given condition holds. Without `names`, only those in blocks are candidates:
    stem and head stay. Each new layer joins its block, or itself outside of the blocks, if it is a `BlockMember`.

    Args:
        network: timm network, theirs or ours, or any other module.
        make: Convolution to layer, e.g. `partial(CondConv2d.like, num_experts=8)`.
        kinds: See `Site`.
        kernel_sizes: Sizes of square kernels.
        stages: Indices of stages; negative ones count from the last.
        last_blocks: The last so many blocks of the network.
        names: Patterns of dotted names, e.g. `layer4.*.conv2`; they may lie outside of the blocks.
        exclude: Patterns of names that stay static.
        classifier: Whether the linear classifier is replaced too, as a 1x1 convolution over pooled features. With
            `names` an empty list, it alone.

    Returns:
        Dotted names of what was replaced, in the order of the network.

    Raises:
        Mistake: A condition that nothing fulfils, or a classifier that is not a linear layer; the message lists
            what there is.
    """
    title = type(network).__name__
    sites = convolution_sites(network)
    stage_names = _in_order(site.stage for site in sites)
    block_names = _in_order(site.block for site in sites)
    if names is None:
        chosen = [site for site in sites if site.block]
    else:
        _refuse("convolution named", [p for p in names if not any(_like(site, [p]) for site in sites)], sites, title)
        chosen = [site for site in sites if _like(site, names)]
    chosen = [site for site in chosen if not _like(site, exclude)]
    if kinds is not None:
        there = _in_order(site.kind for site in chosen)
        _refuse("convolution of kind", [kind for kind in kinds if kind not in there], there, title)
        chosen = [site for site in chosen if site.kind in kinds]
    if kernel_sizes is not None:
        sizes = sorted({site.kernel_size for site in chosen}, key=str)
        _refuse("kernel of size", [size for size in kernel_sizes if size not in sizes], sizes, title)
        chosen = [site for site in chosen if site.kernel_size in kernel_sizes]
    if stages is not None:
        count = len(stage_names)
        absent = [stage for stage in stages if not -count <= stage < count]
        _refuse("stage", absent, [f"{i} ({name})" for i, name in enumerate(stage_names)], title)
        chosen = [site for site in chosen if site.stage in {stage_names[stage] for stage in stages}]
    if last_blocks is not None:
        absent = [] if 1 <= last_blocks <= len(block_names) else [last_blocks]
        _refuse("choice of last blocks", absent, [f"1 to {len(block_names)}"] if block_names else [], title)
        chosen = [site for site in chosen if site.block in block_names[-last_blocks:]]
    if not chosen and not (classifier and names is not None and not names):
        raise Mistake(f"no convolution of {title} fulfils all conditions at once; it has {_listed(sites)}")

    replaced = [site.name for site in chosen]
    for site in chosen:
        _put(network, site.name, network.get_submodule(site.name), make)
    for site in chosen:
        _join(network.get_submodule(site.name), network.get_submodule(site.block or site.name))
    if classifier:
        replaced.append(_replace_classifier(network, make))
    return replaced


def replace_modules(network: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> list[str]:
    """Puts a layer in the place of each module of a kind, in place.

    Args:
        network: Any.
        kind: Class of the modules; those of derived classes stay.
        make: Module to layer.

    Returns:
        Dotted names of what was replaced, in the order of the network.

    Raises:
        Mistake: There is none.
    """
    replaced = [name for name, module in network.named_modules() if name and type(module) is kind]
    if not replaced:
        raise Mistake(f"{type(network).__name__} has no {kind.__name__} of {kind.__module__.split('.')[0]}")
    for name in replaced:
        _put(network, name, network.get_submodule(name), make)
    return replaced


def _replace_classifier(network: nn.Module, make: Callable[[nn.Conv2d], nn.Module]) -> str:
    get_classifier = getattr(network, "get_classifier", None)
    linear = get_classifier() if callable(get_classifier) else None
    name = next((name for name, module in network.named_modules() if module is linear), "")
    if not isinstance(linear, nn.Linear):
        linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        raise Mistake(f"{type(network).__name__} has no linear classifier; its linear layers: {_listed(linears)}")
    with torch.device(linear.weight.device):
        conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    conv.to(linear.weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(linear.weight[:, :, None, None])
        if linear.bias is not None and conv.bias is not None:
            conv.bias.copy_(linear.bias)
    network.set_submodule(name, PointwiseClassifier(conv))
    layer = f"{name}.layer"
    _put(network, layer, conv, make)
    _join(network.get_submodule(layer), network.get_submodule(layer))
    return name


def _put(network: nn.Module, name: str, replaced: Any, make: Callable[[Any], nn.Module]) -> None:
    like = next(replaced.parameters())
    with torch.device(like.device):
        layer = make(replaced)
    network.set_submodule(name, layer.to(like.dtype).train(replaced.training))


def _join(layer: nn.Module, block: nn.Module) -> None:
    if isinstance(layer, BlockMember):
        layer.join(block)


def _kind(conv: nn.Conv2d) -> Kind:
    if conv.groups > 1:
        return "depthwise" if conv.groups == conv.in_channels else "grouped"
    return "pointwise" if set(conv.kernel_size) == {1} else "dense"


def _square(size: tuple[int, ...]) -> int | tuple[int, ...]:
    return size[0] if len(set(size)) == 1 else size


def _group(network: nn.Module, name: str, coarse: bool = False) -> str:
    """The block of a module, or its stage; empty outside of both."""
    matcher = getattr(network, "group_matcher", None)
    if not callable(matcher):
        match = _BLOCK.match(name)
        return "" if match is None else match["stage"] if coarse else match[0]
    patterns = matcher(coarse=coarse).get("blocks", [])
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        # A pattern with a number beside it puts a single layer between the blocks.
        regex, position = (pattern, None) if isinstance(pattern, str) else pattern
        if position is None and (match := re.match(regex, name)):
            return match[0]
    return ""


def _like(site: Site, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(site.name, pattern) for pattern in patterns)


def _in_order(names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name]


def _refuse(what: str, absent: Sequence[object], there: Sequence[object], title: str) -> None:
    if absent:
        raise Mistake(f"{title} has no {what} {_listed(absent)}; there are {_listed(there)}")


def _listed(things: Sequence[object]) -> str:
    names = [thing.name if isinstance(thing, Site) else str(thing) for thing in things]
    return ", ".join(names) or "none"
