"""Networks as spaces: which network can be searched, and the one that a search has chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from models.anytime import MultiExit
from models.mistakes import Mistake
from models.supernet.exits import SearchableExits
from models.supernet.space import Architecture, Searchable


@runtime_checkable
class Observant(Protocol):
    """A searchable network whose costs depend on images: it is shown those of the search first."""

    def observe(self, images: Tensor) -> None:
        """Looks at images [B, C, H, W]."""


@runtime_checkable
class Divisible(Protocol):
    """A searchable network that runs in pieces, one after another, so that what they take adds up."""

    def pieces(self, architecture: Architecture) -> Mapping[str, float]:
        """How often each piece runs for an image, by names that say all that its time depends on."""

    def piece(self, name: str, images: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """A piece alone, to be called without gradients, and what it takes for images [1, C, H, W]."""


def searchable(network: nn.Module) -> nn.Module:
    """A network as one that can be searched: itself if it is one, or around its exits.

    Raises:
        Mistake: There is nothing to choose in it.
    """
    if isinstance(network, Searchable):
        return network
    if isinstance(network, MultiExit):
        return SearchableExits(network)
    raise Mistake(
        f"{type(network).__name__} has nothing to choose: give a supernet, or a network with exits (CONTRIBUTING.md "
        "says under `choices` what a network of your own needs)"
    )


def chosen(network: nn.Module, architecture: dict[str, Any]) -> nn.Module:
    """One architecture of a network that can be searched, as a network of its own.

    Args:
        network: The network that has the choices; its weights, random or not, are inherited.
        architecture: What `python -m exp search` wrote, in plain values; see `models.supernet.Space.described`.

    Raises:
        Mistake: There is nothing to choose, or the architecture is of another space.
    """
    whole = searchable(network)
    assert isinstance(whole, Searchable)
    return whole.extracted(whole.space.read(architecture))
