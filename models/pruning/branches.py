"""Residual branches that are scaled while a network is trained, and removed with all their layers where they are not
worth it: Sparse Structure Selection.

A block computes shortcut + scale * branch. The scale is a parameter `branch_scale` of the branch's last layer, so that
all other names of a network stay what they were. A branch is removed from the graph of its block: what the sum adds to
the shortcut goes, with every layer that only served it.

Reference: "Data-Driven Sparse Structure Selection for Deep Neural Networks", arXiv 1707.01213.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.compute import inference
from models.mistakes import Mistake
from models.pruning.groups import CONVOLUTIONS, NORMS

SCALE = "branch_scale"
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
# Of single precision, relative to the largest output; a layer too many or too few changes it by far more.
TOLERANCE = 1e-4


def scale_branches(network: nn.Module, branches: Sequence[str]) -> None:
    """Puts a scale of one on the last layer of each branch, in place.

    Args:
        network: Has residual branches.
        branches: Patterns of the names of their last layers, such as `layer*.bn3`. Of those that they fit, the ones
            are taken whose output is added to something.

    Raises:
        Mistake: A pattern that fits no such layer.
    """
    named = dict(network.named_modules())
    for pattern in branches:
        fitting = [name for name in named if name and fnmatchcase(name, pattern)]
        problems = {name: _problem(network, name) for name in fitting}
        found = [name for name in fitting if not problems[name]]
        if not found:
            raise Mistake(
                next(iter(problems.values()), "")
                or f"branches: {type(network).__name__} has no layer '{pattern}'; name the last layers of its residual "
                "branches, such as layer*.bn3"
            )
        for name in found:
            if not hasattr(named[name], SCALE):
                named[name].register_parameter(SCALE, nn.Parameter(torch.ones(())))
                named[name].register_forward_hook(_scaled)


def scales_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """The scale of each branch that has one, by the name of its last layer, in the order of the network."""
    return {name: getattr(m, SCALE) for name, m in network.named_modules() if hasattr(m, SCALE)}


@torch.no_grad()
def remove_branches(network: nn.Module, gone: Sequence[str]) -> None:
    """Removes branches, in place, and brings the scales of the others into their last layers.

    A last layer that is made of several keeps its scale.

    Args:
        network: Has scales on its branches, or none.
        gone: Names of the last layers of the branches that go.

    Raises:
        Mistake: A branch whose block cannot be traced or does not add it to anything.
    """
    for name in gone:
        _remove(network, name)
    for name, scale in scales_of(network).items():
        layer = network.get_submodule(name)
        if not isinstance(layer, (*CONVOLUTIONS, *NORMS, nn.Linear)) or layer.weight is None:
            # What is made of several layers keeps its scale.
            continue
        for key, parameter in layer.named_parameters(recurse=False):
            if key in ("weight", "bias"):
                parameter.mul_(scale)
        delattr(layer, SCALE)
        _unhook(layer)


def check_branches(network: nn.Module, gone: Sequence[str], inputs: tuple[Any, ...]) -> None:
    """Whether a network without some branches computes what it does with their scales at zero.

    Args:
        network: Has scales on these branches; it is left as it is.
        gone: Names of the branches that go.
        inputs: What it takes.

    Raises:
        Mistake: It does not.
    """
    twin, small = copy.deepcopy(network), copy.deepcopy(network)
    remove_branches(small, gone)
    for name in gone:
        nn.init.zeros_(scales_of(twin)[name])
    with inference(twin), inference(small):
        expected, found = twin(*inputs), small(*inputs)
    for ours, theirs in zip(_tensors(found), _tensors(expected), strict=True):
        if (ours - theirs).abs().max() > TOLERANCE * theirs.abs().max().clamp_min(1e-6):
            raise Mistake(
                f"{type(network).__name__} computes something else without {', '.join(gone)} than with their scales at "
                "zero: branches are named by the layer whose output is added to the shortcut, and scaled there"
            )


def by_scale(network: nn.Module) -> list[str]:
    """Names of the branches, the one of the smallest scale first.

    Raises:
        Mistake: The network has no scales.
    """
    scales = scales_of(network)
    if not scales:
        raise Mistake(
            f"{type(network).__name__} has no scales on its branches: train it as models.classifiers.scaled_branches, "
            "with callbacks.StructureSelection"
        )
    return sorted(scales, key=lambda name: float(scales[name].detach().abs()))


def _problem(network: nn.Module, name: str) -> str:
    """Why a branch could not be removed; nothing where it could."""
    try:
        _found(network, name)
    except Mistake as mistake:
        return str(mistake)
    return ""


def _scaled(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * layer.get_parameter(SCALE)


def _unhook(layer: nn.Module) -> None:
    for key in [key for key, hook in layer._forward_hooks.items() if hook is _scaled]:
        del layer._forward_hooks[key]


class _Tracer(fx.Tracer):
    """Traces what lies between a block and a layer of it, and takes everything else as it is."""

    def __init__(self, inside: str) -> None:
        super().__init__()
        self.inside = inside

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether a module is one node."""
        return not self.inside.startswith(f"{name}.")


def _remove(network: nn.Module, name: str) -> None:
    block, graph, total, rest = _found(network, name)
    total.replace_all_uses_with(rest)
    module = network.get_submodule(block)
    smaller = fx.GraphModule(module, graph, type(module).__name__)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
    smaller.recompile()
    smaller.delete_all_unused_submodules()
    # What worked in the place of the sum would now work in the place of the block's input, which others may hold.
    for each in smaller.modules():
        if getattr(each, "inplace", False):
            each.inplace = False  # type: ignore[assignment]
    network.set_submodule(block, smaller.train(module.training))


def _found(network: nn.Module, name: str) -> tuple[str, fx.Graph, fx.Node, fx.Node]:
    """The nearest block that adds a branch to a shortcut: its name, its graph, the sum, and what else is summed.

    Raises:
        Mistake: There is none.
    """
    problem = "it belongs to no block"
    for block, inside in _blocks(name):
        try:
            graph = _Tracer(inside).trace(network.get_submodule(block))
        except Exception as error:
            # Whatever a block of somebody else's does that depends on values.
            problem = f"{type(error).__name__} in tracing {block}"
            continue
        added = _sum_of(graph, inside)
        if added is not None:
            return block, graph, *added
        problem = f"{block} adds it to nothing"
    raise Mistake(f"branch {name} cannot go: {problem}; name the last layer before the sum with the shortcut")


def _blocks(name: str) -> Iterator[tuple[str, str]]:
    """The modules around a layer but the whole network, the nearest first, each with the layer's name in it."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:count]), ".".join(parts[count:])


def _sum_of(graph: fx.Graph, inside: str) -> tuple[fx.Node, fx.Node] | None:
    """The sum that a layer's output ends in, by itself or through layers that keep a zero, and what it is added to."""
    nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == inside]
    if len(nodes) != 1:
        return None
    node = nodes[0]
    while len(node.users) == 1:
        (user,) = node.users
        if user.op in ("call_function", "call_method") and user.target in SUMS:
            others = [each for each in user.args if isinstance(each, fx.Node) and each is not node]
            return (user, others[0]) if len(others) == 1 else None
        node = user
    return None


def _tensors(outputs: Any) -> list[Tensor]:
    return [each for each in torch.utils._pytree.tree_leaves(outputs) if isinstance(each, Tensor)]


def branches_to_budget(
    network: nn.Module, inputs: tuple[Any, ...], budget: float, cost: Callable[[nn.Module], float]
) -> list[str]:
    """Branches of the smallest scales that have to go until a network costs at most a share of what it did.

    Args:
        network: Has scales on its branches.
        inputs: What it takes.
        budget: Share of the cost that is left, in (0, 1).
        cost: Of a network.

    Raises:
        Mistake: No scales, a budget that is no share, or one that is below what is left without any branch.
    """
    if not 0 < budget < 1:
        raise Mistake(f"a budget of {budget:g} is not a share of what the network costs: it lies between 0 and 1")
    order, whole = by_scale(network), cost(network)

    def left(count: int) -> float:
        small = copy.deepcopy(network)
        remove_branches(small, order[:count])
        return cost(small) / whole

    if (least := left(len(order))) > budget:
        raise Mistake(
            f"a budget of {budget:g} is below what this plan can reach: {least:.3f} is left without any of the "
            f"{len(order)} branches"
        )
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= budget else (middle, high)
    gone = [name for name in scales_of(network) if name in set(order[:high])]
    check_branches(network, gone, inputs)
    return gone
