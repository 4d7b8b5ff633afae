"""What a network was given, returned and made on the way, noted while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from models.mistakes import Mistake


@dataclass
class Seen:
    """A forward pass.

    Args:
        inputs: What the network was given.
        output: What it returned.
        features: What its layers returned, by name; several maps of a layer one after the other.
    """

    inputs: tuple[Any, ...]
    output: Any
    features: dict[str, list[Tensor]] = field(default_factory=dict)

    def maps(self, names: Iterable[str]) -> list[Tensor]:
        """The feature maps of some layers, in their order."""
        return [each for name in names for each in self.features[name]]


class Watch:
    """Notes the passes of a network, the newest one only.

    Args:
        network: Watched from now on.
        names: Layers whose outputs are noted: dotted names of its modules.
        training_only: Leave passes in evaluation alone.

    Attributes:
        seen: The newest pass; None before the first.

    Raises:
        Mistake: The network has no such layer.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], training_only: bool = False) -> None:
        self.seen: Seen | None = None
        self.training_only = training_only
        self._features: dict[str, list[Tensor]] = {}
        layers = dict(network.named_modules())
        for name in dict.fromkeys(names):
            if name not in layers or not name:
                near = get_close_matches(name, layers, n=1)
                known = ", ".join(child for child, _ in network.named_children())
                hint = f"did you mean '{near[0]}'?" if near else f"it has {known}"
                raise Mistake(f"{type(network).__name__} has no layer '{name}' whose features could be taken; {hint}")
            layers[name].register_forward_hook(self._noting(name, network))
        network.register_forward_hook(self._note)

    def _noting(self, name: str, network: nn.Module) -> Any:
        def note(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if network.training or not self.training_only:
                self._features[name] = maps_of(output)

        return note

    def _note(self, network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if network.training or not self.training_only:
            self.seen = Seen(inputs, output, self._features)
            self._features = {}


def maps_of(output: Any) -> list[Tensor]:
    """The tensors of a layer's output: one, or those of a list, a tuple or a dict, however deep, in their order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [each for value in output.values() for each in maps_of(value)]
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [each for value in output for each in maps_of(value)]
    return []
