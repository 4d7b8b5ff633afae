"""Spaces of architectures: what can be chosen, and how choices are drawn, mutated and crossed.

Reference: "AutoFormer: Searching Transformers for Visual Recognition", ICCV 2021, arXiv 2107.00651, section 3;
microsoft/Cream 4a13c4091e78, whose order of draws is kept, so that a seed finds what it finds there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Protocol, runtime_checkable

from torch import nn

from models.mistakes import Mistake

Number = int | float
# What was chosen, in plain numbers; equal architectures are equal tuples.
Architecture = tuple[Number, ...]


class Space:
    """Independent choices by name; an architecture is a tuple of one value a name, in their order.

    Args:
        choices: For each name the values that can be chosen, plain numbers.

    Raises:
        Mistake: No choice, or one without values.
    """

    def __init__(self, choices: Mapping[str, Sequence[Number]]) -> None:
        self.choices: dict[str, tuple[Number, ...]] = {name: tuple(values) for name, values in choices.items()}
        if not self.choices or not all(self.choices.values()):
            raise Mistake(f"a space has at least one value for each of its choices, not {dict(choices)}")

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return math.prod(len(set(values)) for values in self.choices.values())

    def draw(self, random: Random) -> Architecture:
        """An architecture, every value equally likely."""
        return tuple(random.choice(values) for values in self.choices.values())

    def mutated(self, architecture: Architecture, random: Random, layer: float, whole: float) -> Architecture:
        """An architecture near another one.

        Args:
            architecture: The one to start from.
            random: What is drawn from.
            layer: Probability that a choice of one layer is drawn anew, perhaps with the same value. Here all are.
            whole: The same for a choice that concerns all layers.
        """
        return tuple(
            random.choice(values) if random.random() < layer else value
            for value, values in zip(architecture, self.choices.values(), strict=True)
        )

    def crosses(self, first: Architecture, second: Architecture) -> bool:
        """Whether two architectures have the same places, which can be filled from either."""
        return len(first) == len(second)

    def crossed(self, first: Architecture, second: Architecture, random: Random) -> Architecture:
        """An architecture that has every value of one of two, which must have the same places."""
        return tuple(random.choice([one, other]) for one, other in zip(first, second, strict=True))

    def smallest(self) -> Architecture:
        """The architecture of the smallest values."""
        return tuple(min(values) for values in self.choices.values())

    def largest(self) -> Architecture:
        """The architecture of the largest values."""
        return tuple(max(values) for values in self.choices.values())

    def refuse(self, architecture: Architecture) -> None:
        """Refuses what is no architecture of this space.

        Raises:
            Mistake: Names what is outside, and what could be chosen.
        """
        if len(architecture) != len(self.choices):
            raise Mistake(f"an architecture of this space has a value for each of {names(self.choices)}")
        for name, value in zip(self.choices, architecture, strict=True):
            self._offered(name, value)

    def described(self, architecture: Architecture) -> dict[str, Any]:
        """An architecture in plain values by name, as a file holds it."""
        return dict(zip(self.choices, architecture, strict=True))

    def read(self, described: Mapping[str, Any]) -> Architecture:
        """The architecture that plain values describe.

        Raises:
            Mistake: Names are missing or unknown, or values outside this space.
        """
        self._keys(described, list(self.choices))
        return tuple(self._offered(name, described[name]) for name in self.choices)

    def _keys(self, described: Mapping[str, Any], wanted: list[str]) -> None:
        if not isinstance(described, Mapping) or set(described) != set(wanted):
            given = names(described) if isinstance(described, Mapping) else repr(described)
            raise Mistake(f"an architecture of this space is described by {names(wanted)}, not by {given}")

    def _offered(self, name: str, value: Any, where: str = "") -> Number:
        """The value as the space has it (4 for 4.0)."""
        for offered in self.choices[name]:
            if offered == value:
                return offered
        raise Mistake(f"{name}{where} is {value}, but this space has {listed(self.choices[name])}")


class TransformerSpace(Space):
    """Transformers of a chosen depth and width, with heads and an MLP ratio for each layer.

    An architecture is (depth, ratio of layer 1, ..., ratio of layer d, heads of layer 1, ..., heads of layer d, width).

    Args:
        depths: Numbers of layers.
        widths: Channels of tokens.
        heads: Attention heads of a layer.
        ratios: Channels inside a layer's MLP over those of tokens.

    Raises:
        Mistake: A choice without values, or a value that is not positive.
    """

    def __init__(
        self, depths: Sequence[int], widths: Sequence[int], heads: Sequence[int], ratios: Sequence[float]
    ) -> None:
        super().__init__({"depth": depths, "ratios": ratios, "heads": heads, "width": widths})
        if min(min(values) for values in self.choices.values()) <= 0:
            raise Mistake(f"depths, widths, heads and ratios are positive, not {self.choices}")

    @property
    def size(self) -> int:
        """How many architectures there are: |widths| sum_d (|heads| |ratios|)^d."""
        depths, ratios, heads, widths = (set(values) for values in self.choices.values())
        return len(widths) * sum((len(heads) * len(ratios)) ** int(depth) for depth in depths)

    def draw(self, random: Random) -> Architecture:
        """An architecture: depth, then the layers' ratios, then their heads, then the width, each uniform."""
        depth = int(random.choice(self.choices["depth"]))
        layers = [random.choice(self.choices[name]) for name in ("ratios", "heads") for _ in range(depth)]
        return (depth, *layers, random.choice(self.choices["width"]))

    def mutated(self, architecture: Architecture, random: Random, layer: float, whole: float) -> Architecture:
        """An architecture near another one: perhaps another depth, with new layers at the end or without its last.

        Args:
            architecture: The one to start from.
            random: What is drawn from.
            layer: Probability that a layer's ratio is drawn anew, and that its heads are.
            whole: Probability that the depth is drawn anew, and that the width is.
        """
        depth, ratios, heads, width = self.parts(architecture)
        genes: dict[str, list[Number]] = {"ratios": ratios, "heads": [*heads]}
        if random.random() < whole:
            before, depth = depth, int(random.choice(self.choices["depth"]))
            for name, values in genes.items():
                new = [random.choice(self.choices[name]) for _ in range(depth - before)]
                genes[name] = [*values[:depth], *new]
        for name, values in genes.items():
            genes[name] = [random.choice(self.choices[name]) if random.random() < layer else value for value in values]
        if random.random() < whole:
            width = int(random.choice(self.choices["width"]))
        return (depth, *genes["ratios"], *genes["heads"], width)

    def smallest(self) -> Architecture:
        """The architecture of least depth, ratios, heads and width."""
        return self._uniform(min)

    def largest(self) -> Architecture:
        """The architecture of most depth, ratios, heads and width."""
        return self._uniform(max)

    def refuse(self, architecture: Architecture) -> None:
        """Refuses what is no architecture of this space.

        Raises:
            Mistake: Names what is outside, and what could be chosen.
        """
        if len(architecture) < 4 or len(architecture) != 2 + 2 * architecture[0]:
            raise Mistake("an architecture has a depth, a ratio for each layer, heads for each layer and a width")
        self.read(self.described(architecture))

    @staticmethod
    def parts(architecture: Architecture) -> tuple[int, list[Number], list[int], int]:
        """Depth, ratios [depth], heads [depth] and width of an architecture."""
        depth = int(architecture[0])
        ratios, heads = architecture[1 : depth + 1], architecture[depth + 1 : 2 * depth + 1]
        return depth, list(ratios), [int(each) for each in heads], int(architecture[-1])

    def described(self, architecture: Architecture) -> dict[str, Any]:
        """An architecture as `depth`, `ratios`, `heads` and `width`."""
        return dict(zip(self.choices, self.parts(architecture), strict=True))

    def read(self, described: Mapping[str, Any]) -> Architecture:
        """The architecture that `depth`, `ratios`, `heads` and `width` describe.

        Raises:
            Mistake: Names are missing or unknown, values outside this space, or lists not as long as the depth.
        """
        self._keys(described, list(self.choices))
        depth, layers = self._offered("depth", described["depth"]), []
        for name in ("ratios", "heads"):
            values = described[name]
            if not isinstance(values, Sequence) or len(values) != depth:
                raise Mistake(f"{name} has one value for each of the {depth} layers, not {values}")
            layers += [self._offered(name, value, f" of layer {i}") for i, value in enumerate(values, 1)]
        return (depth, *layers, self._offered("width", described["width"]))

    def _uniform(self, pick: Any) -> Architecture:
        depth, ratio, heads, width = (pick(values) for values in self.choices.values())
        return (depth, *[ratio] * depth, *[heads] * depth, width)


@runtime_checkable
class Searchable(Protocol):
    """A network that computes any architecture of a space with weights that they share.

    `choose` says which one the next forward passes compute; what was chosen is not in the state dict.
    """

    space: Space

    def choose(self, architecture: Architecture) -> None:
        """Computes this architecture from now on.

        Raises:
            Mistake: It is outside the space.
        """

    def cost(self, architecture: Architecture) -> dict[str, float]:
        """What an architecture costs: `params`, `multiply_adds` of a sample, and what else a paper counts."""

    def extracted(self, architecture: Architecture) -> nn.Module:
        """The architecture as a plain network of its own, with the weights that it inherits."""


def names(values: Any) -> str:
    """Names in a sentence."""
    return ", ".join(str(value) for value in values) or "nothing"


def listed(values: Sequence[Number]) -> str:
    """Values to choose from, in a sentence."""
    *most, last = [f"{value:g}" for value in values]
    return f"{', '.join(most)} or {last}" if most else last
