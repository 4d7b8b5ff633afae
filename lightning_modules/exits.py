"""Networks with one exit or several, in training: their outputs, and what the losses of the exits weigh."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

ExitWeights = list[float] | Literal["mean", "sum"]


def as_exits(output: Any) -> list[Any]:
    """What every exit of a network returned, cheapest first; of one exit or several."""
    return list(output) if isinstance(output, (list, tuple)) else [output]


def checked(weights: ExitWeights) -> ExitWeights:
    """The weights of exits as given.

    Raises:
        ValueError: Neither mean, sum nor numbers of 0 or more.
    """
    if weights not in ("mean", "sum") and any(isinstance(w, str) or w < 0 for w in weights):
        raise ValueError(f"exit_weights are mean, sum or a number for each exit, 0 or more, not {weights!r}")
    return weights


def weights_of(weights: ExitWeights, exits: int, network: nn.Module) -> list[float]:
    """What the loss of each exit is multiplied by before they are added up.

    Args:
        weights: `sum` for 1 each, `mean` for 1 / exits, or a number for each exit.
        exits: How many exits the network has.
        network: Named in the error.

    Raises:
        ValueError: Not one number for each exit.
    """
    if weights == "mean":
        return [1 / exits] * exits
    if weights == "sum":
        return [1.0] * exits
    if len(weights) != exits:
        given = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(
            f"exit_weights has {len(weights)} numbers ({given}), but {type(network).__name__} has {exits} exits: give "
            "one number for each, or mean or sum"
        )
    return weights
