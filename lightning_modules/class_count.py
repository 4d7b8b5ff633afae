"""How many labels a network tells apart."""

from __future__ import annotations

from torch import nn

from models.mistakes import Mistake


def classes_of(network: nn.Module, num_classes: int | None) -> int:
    """Labels that a network tells apart: as given, else what it says of itself.

    Args:
        network: perhaps with an attribute `num_classes`.
        num_classes: None to ask the network.

    Raises:
        Mistake: neither says it.
    """
    classes = num_classes if num_classes is not None else getattr(network, "num_classes", None)
    if classes is None:
        raise Mistake(f"{type(network).__name__} has no attribute num_classes: give the task num_classes")
    return int(classes)
