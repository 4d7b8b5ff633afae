"""The space of routes through the grid of Dynamic Routing, and the fixed networks in it.

A route is a set of edges. The edge `(layer, level, transform)` leads from the cell of that layer and level to the next
layer, to the same level (`keep`), the next finer one (`up`) or the next coarser one (`down`). Layer 0 is the initial
cell; a `keep` of the last layer leads out of the grid, to the decoder. Level k has a stride of 4 * 2^k pixels.

Reference: "Learning Dynamic Routing for Semantic Segmentation", arXiv 2003.10401, section 3.3 and figure 5. The figure
gives no lists of edges: the fixed networks here are paths and exchanges after those of the networks they are named for.
"""

from collections.abc import Collection, Iterable

from torch import Tensor

from models.mistakes import Mistake

TRANSFORMS = ("keep", "up", "down")
# Levels that a transform moves by.
STEPS = {"keep": 0, "up": -1, "down": 1}
NUM_LEVELS = 4

Edge = tuple[int, int, str]

# Level of each of 16 layers.
_PATHS = {
    "fcn32s": (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3),
    "deeplabv3": (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2),
    "unet": (0, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 1, 1, 0, 0, 0),
    "auto_deeplab": (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1, 1, 1, 1, 1),
}
_PLANNED_LAYERS = 16
# Of 16 layers: those that a new level opens after, and those after which the open levels exchange maps.
_HRNET_OPENING, _HRNET_EXCHANGING = (3, 7, 11), (6, 10, 14)

FIXED = (*_PATHS, "hrnet", "all")


def num_cells(layer: int) -> int:
    """Cells of a layer: 1, 2, 3, and then one for each level."""
    return min(layer + 1, NUM_LEVELS)


def all_edges(num_layers: int) -> set[Edge]:
    """Every edge there is."""
    edges: set[Edge] = set()
    for layer in range(num_layers + 1):
        for level in range(num_cells(layer)):
            edges |= {(layer, level, transform) for transform in _transforms(layer, level, num_layers)}
    return edges


def fixed_route(name: str, num_layers: int) -> set[Edge]:
    """The edges of a fixed network; drawn for 16 layers, and stretched to others.

    Args:
        name: `all`: every edge. `fcn32s`: straight down. `deeplabv3`: down to a stride of 16 and on at it. `unet`: down
            and up again, with a path at each level between the two. `hrnet`: levels that open one after the other,
            stay, and exchange their maps. `auto_deeplab`: down, with turns, and up to a stride of 8.
        num_layers: Layers after the initial cell.

    Returns:
        Its edges.

    Raises:
        Mistake: No such network.
    """
    if name == "all":
        return all_edges(num_layers)
    if name == "hrnet":
        return _hrnet(num_layers)
    if name not in _PATHS:
        raise Mistake(f"route must be one of dynamic, {', '.join(FIXED)}, or a list of edges, not {name!r}")
    levels = _stretched(_PATHS[name], num_layers)
    return _path(levels) | (_bridges(levels) if name == "unet" else set())


def common_route(usage: Tensor, threshold: float = 0.5) -> list[Edge]:
    """The fixed network of the edges that most images take: Common-A of Dynamic-A, and so on.

    Args:
        usage: Share of the images for which each edge is open [layers + 1, 4, 3], over a data set.
        threshold: Share from which an edge is in the route.

    Returns:
        Its edges, without those that lead nowhere.

    Raises:
        Mistake: No path of such edges reaches the last layer.
    """
    taken = (usage >= threshold).nonzero().tolist()
    return sorted(pruned([(layer, level, TRANSFORMS[i]) for layer, level, i in taken], len(usage) - 1))


def pruned(edges: Iterable[Edge], num_layers: int) -> set[Edge]:
    """Edges on some path from the initial cell to the decoder.

    Args:
        edges: The edges of a route.
        num_layers: Layers after the initial cell.

    Raises:
        Mistake: An edge that is not in the space, or no path through.
    """
    given = {(int(layer), int(level), transform) for layer, level, transform in edges}
    if strange := sorted(given - all_edges(num_layers)):
        raise Mistake(
            f"a route of {num_layers} layers has edges (layer 0..{num_layers}, level 0..{NUM_LEVELS - 1}, "
            f"{' | '.join(TRANSFORMS)}) within the grid; {strange[0]} is none"
        )
    reached = {(0, 0)}
    for edge in sorted(given):
        if edge[:2] in reached:
            reached.add(_target(edge))
    useful = {(num_layers + 1, level) for level in range(NUM_LEVELS)}
    kept: set[Edge] = set()
    for edge in sorted(given, reverse=True):
        if edge[:2] in reached and _target(edge) in useful:
            useful.add(edge[:2])
            kept.add(edge)
    if not kept:
        raise Mistake(f"the route has no path from the initial cell to the end of layer {num_layers}")
    return kept


def _transforms(layer: int, level: int, num_layers: int) -> list[str]:
    if layer == num_layers:
        return ["keep"]
    return [transform for transform in TRANSFORMS if 0 <= level + STEPS[transform] < NUM_LEVELS]


def _target(edge: Edge) -> tuple[int, int]:
    layer, level, transform = edge
    return layer + 1, level + STEPS[transform]


def _stretched(levels: Collection[int], num_layers: int) -> list[int]:
    """Nearest plan for each layer, one level a layer at most."""
    plan, path = list(levels), [0]
    for layer in range(num_layers):
        wanted = plan[int((layer + 0.5) * _PLANNED_LAYERS / num_layers)]
        path.append(path[-1] + max(-1, min(1, wanted - path[-1])))
    return path


def _path(levels: list[int]) -> set[Edge]:
    """Edges through one cell a layer, the initial one first."""
    transforms = {step: transform for transform, step in STEPS.items()}
    steps = [after - before for before, after in zip(levels, [*levels[1:], levels[-1]], strict=True)]
    return {(layer, level, transforms[step]) for layer, (level, step) in enumerate(zip(levels, steps, strict=True))}


def _bridges(levels: list[int]) -> set[Edge]:
    """From the first cell of a path at a level to the last one there."""
    edges: set[Edge] = set()
    for level in set(levels):
        layers = [layer for layer, at in enumerate(levels) if at == level]
        edges |= {(layer, level, "keep") for layer in range(layers[0], layers[-1])}
    return edges


def _hrnet(num_layers: int) -> set[Edge]:
    opening, exchanging = (
        {layer * num_layers // _PLANNED_LAYERS for layer in layers} for layers in (_HRNET_OPENING, _HRNET_EXCHANGING)
    )
    edges: set[Edge] = set()
    coarsest = 0
    for layer in range(num_layers + 1):
        edges |= {(layer, level, "keep") for level in range(coarsest + 1)}
        if layer in exchanging:
            edges |= {(layer, level, "up") for level in range(1, coarsest + 1)}
            edges |= {(layer, level, "down") for level in range(coarsest)}
        if layer in opening:
            edges.add((layer, coarsest, "down"))
            coarsest += 1
    return edges
