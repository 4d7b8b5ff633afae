"""What candidates cost, each asked once, and whether that is within the limits."""

from __future__ import annotations

from collections.abc import Callable

from exp.searching.limits import Limits, short
from exp.usage import UsageError
from models.supernet.space import Architecture, Searchable

LATENCY = "latency_ms"


class Costs:
    """What candidates cost.

    Args:
        network: Says so.
        limits: What they may cost.
        latency: Milliseconds that one takes for an image, where that is asked for.

    Raises:
        UsageError: A limit on what the network does not say.
    """

    def __init__(
        self, network: Searchable, limits: Limits, latency: Callable[[Architecture], float] | None = None
    ) -> None:
        self._network, self.limits, self._latency = network, limits, latency
        self._known: dict[Architecture, dict[str, float]] = {}
        self._outside: dict[Architecture, float] = {}
        self.names = list(self.of(network.space.smallest()))
        limits.check(self.names)

    def of(self, architecture: Architecture) -> dict[str, float]:
        """Costs by name."""
        if architecture not in self._known:
            costs = {name: float(value) for name, value in self._network.cost(architecture).items()}
            if self._latency is not None:
                costs[LATENCY] = self._latency(architecture)
            self._known[architecture] = costs
        return self._known[architecture]

    def admits(self, architecture: Architecture) -> bool:
        """Whether an architecture is within the limits."""
        excess = self.limits.excess(self.of(architecture))
        if excess:
            self._outside[architecture] = excess
        return not excess

    def axis(self, asked: str | None) -> str:
        """The cost that a front is over: the one asked for, else the first limited one, else multiply-adds.

        Raises:
            UsageError: There is no such cost.
        """
        if asked is not None and asked not in self.names:
            raise UsageError(f"--over {asked}: this network's costs are {', '.join(self.names)}")
        usual = [*self.limits.ranges, "multiply_adds", *self.names]
        return asked or next(name for name in usual if name in self.names)

    def nobody(self) -> str:
        """Why no candidate was found: what was nearest to the limits."""
        for architecture in (self._network.space.smallest(), self._network.space.largest()):
            self.admits(architecture)
        nearest = min(self._outside, key=lambda each: self._outside[each])
        costs = self.of(nearest)
        said = ", ".join(f"{name} {short(costs[name])}" for name in self.limits.ranges)
        return f"no architecture of this space has {self.limits}; the nearest of those looked at has {said}"
