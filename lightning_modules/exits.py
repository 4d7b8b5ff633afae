"""Networks with one exit or several: their outputs, what they cost, and what the losses of the exits weigh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from models.anytime import each_exit
from models.compute import executed_by_parts
from models.mistakes import Mistake

ExitWeights = list[float] | Literal["mean", "sum"]


def as_exits(output: Any) -> list[Any]:
    """What every exit of a network returned, cheapest first; of one exit or several."""
    return list(output) if isinstance(output, (list, tuple)) else [output]


@dataclass(frozen=True)
class ExitMacs:
    """Multiply-adds of an image up to each exit, cheapest first.

    Args:
        executed: What the operators that ran took.
        published: As the network's paper counts them; empty for networks that do not say.
        dense: Where everything is computed; empty likewise.
    """

    executed: list[float]
    published: list[float]
    dense: list[float]


def countable(network: nn.Module) -> bool:
    """Whether what a network runs can be counted: operators of one that runs elsewhere do not show."""
    return not getattr(network, "hides_operators", False)


def run_and_count(network: nn.Module, images: Tensor) -> tuple[list[Tensor], ExitMacs]:
    """Runs a network for dense prediction exit by exit, and counts.

    Args:
        network: In evaluation, not compiled (see `models.anytime.each_exit`).
        images: [B, C, H, W].

    Returns:
        What each exit returned, and the mean of what it took over the images.
    """
    counted = executed_by_parts(each_exit(network, images), len(images))
    exits, executed = [maps for maps, _ in counted], [macs for _, macs in counted]
    published, dense = getattr(network, "published_macs", None), getattr(network, "dense_macs", None)
    size = images.shape[1:]
    return exits, ExitMacs(executed, published(size) if published else [], dense(size) if dense else [])


def valid_exit_weights(weights: ExitWeights) -> ExitWeights:
    """The weights of exits as they were given.

    Raises:
        Mistake: Neither mean, sum nor numbers of 0 or more.
    """
    if weights not in ("mean", "sum") and any(isinstance(w, str) or w < 0 for w in weights):
        raise Mistake(f"exit_weights are mean, sum or a number for each exit, 0 or more, not {weights!r}")
    return weights


def exit_suffixes(exits: int) -> list[str]:
    """What the names of each exit's metrics end in; nothing for the last one."""
    return [f"_exit{i}" for i in range(exits - 1)] + [""]


def weights_of(weights: ExitWeights, exits: int, network: nn.Module) -> list[float]:
    """What the loss of each exit is multiplied by before they are added up.

    Args:
        weights: `sum` for 1 each, `mean` for 1 / exits, or a number for each exit.
        exits: How many exits the network has.
        network: Named in the error.

    Raises:
        Mistake: Not one number for each exit.
    """
    if weights == "mean":
        return [1 / exits] * exits
    if weights == "sum":
        return [1.0] * exits
    if len(weights) != exits:
        given = ", ".join(f"{weight:g}" for weight in weights)
        raise Mistake(
            f"exit_weights has {len(weights)} numbers ({given}), but {type(network).__name__} has {exits} exits: give "
            "one number for each, or mean or sum"
        )
    return weights
