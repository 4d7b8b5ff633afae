"""What the dynamic layers of a network decided in its last forward pass, said in one way for all of them.

A layer that decides calls `note` at each forward, and whoever draws or logs decisions reads them with `noted`, by their
kind and without knowing the layer's class:

| kind | values | read as |
|---|---|---|
| `mixture` | float [B, options] | how much of each option is in a sample's mixture |
| `map` | int64 [B, h, w] | which option applies at each position |
| `choice` | int64 [B] | which option a sample got |
| `route` | float [B, layers, levels, ways] | how far each way through a grid is open; 0 where it is closed |
| `levels` | int64 [B, levels] | which option each level of a pyramid, finest first, got |
| `balance` | float [B, heads, branches] | what each head of a layer multiplies each of its branches by |
| `exit` | bool [B, exits, h, w] | whether each position was computed for an exit; exits that were reached only |
| `span` | float [B, options] | how far each option, a head for instance, looks, in positions |
| `attention` | float [B, maps, tokens] | how much each of some sums takes of each token; of cells, [B, maps, h, w] |

Nothing is kept of a compiled graph, which has no state on the side, nor of tensors without data. What is kept has no
gradient and is no part of the state dict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from models.compute import has_values

Kind = Literal["mixture", "map", "choice", "route", "levels", "balance", "exit", "span", "attention"]


@dataclass(frozen=True)
class Grid:
    """The ways that a `route` can take: from a level of a layer to one of the next layer.

    Args:
        exists: Ways that there are, bool [layers, levels, ways].
        steps: How many levels each way leads on by, [ways]; negative towards the first level.
        levels: Names of the levels.
        fixed: Whether all ways are open for every sample, so that there is nothing to decide.
        image_size: Height and width of the images that took the routes, in pixels.
    """

    exists: Tensor
    steps: tuple[int, ...]
    levels: tuple[str, ...]
    fixed: bool
    image_size: tuple[int, int]


class Router(Protocol):
    """What a layer that notes a `route` can say of routes."""

    def route_macs(self, routes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Multiply-adds that an inference takes for each of the routes.

        Args:
            routes: [B, layers, levels, ways], on the CPU.
            image_size: Height and width, as noted.

        Returns:
            [B], float64.
        """

    def common_route(self, usage: Tensor) -> dict[str, Any]:
        """The fixed network of the ways that are open for at least half of the images.

        Args:
            usage: Share of the images for which each way is open [layers, levels, ways].

        Returns:
            Arguments of the network's constructor that make it, to be written to a config.

        Raises:
            Mistake: No such network.
        """


@dataclass(frozen=True)
class Decision:
    """What a layer decided for each sample of a batch.

    Args:
        kind: Which values these are; see the table of this module.
        values: The decisions, without gradient.
        option: What one option is called, in the singular: `kernel`, `region`, `resolution`.
        names: Of the options; for a `route`, of the ways.
        costs: What a `choice` of each option takes, as a share of the dearest; of `levels`, what each option of the
            first level takes, then of the second, and so on, as a share of all that they can take; else empty.
        grid: Of a `route`.
    """

    kind: Kind
    values: Tensor
    option: str
    names: tuple[str, ...]
    costs: tuple[float, ...] = ()
    grid: Grid | None = None


def note(
    layer: nn.Module,
    kind: Kind,
    values: Tensor,
    option: str,
    names: Sequence[str],
    costs: Sequence[float] = (),
    grid: Grid | None = None,
) -> None:
    """Keeps what a layer decided, in place of what it decided before. To be called at each forward; waits for nothing.

    Args:
        layer: Whose decision it is.
        kind, values, option, names, costs, grid: See `Decision`.
    """
    if not torch.compiler.is_compiling() and has_values(values):
        decision = Decision(kind, values.detach(), option, tuple(names), tuple(costs), grid)
        layer._decision = decision  # type: ignore[assignment]


def noted(network: nn.Module) -> dict[str, Decision]:
    """What each layer of a network decided when it last ran, by the layer's name; empty for the network itself."""
    named = ((name, getattr(module, "_decision", None)) for name, module in network.named_modules())
    return {name: decision for name, decision in named if decision is not None}


def forget(network: nn.Module) -> None:
    """Drops what the layers of a network decided, so that only what runs from here on is `noted`."""
    for module in network.modules():
        module.__dict__.pop("_decision", None)
