"""From a share or a budget to a plan: how many channels each layer keeps, and which."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.mistakes import Mistake
from models.pruning.costs import Costs
from models.pruning.groups import ChannelGroup
from models.pruning.plan import Plan, plan_of
from models.pruning.removal import remove
from models.pruning.selection import keep_largest, kept_count

Of = Literal["macs", "parameters", "latency"]
Scope = Literal["local", "global"]
HALVINGS = 24
# Of a measured latency, which costs a second each and is not exact anyway.
MEASUREMENTS = 7
LARGEST_SHARE = 0.999


@dataclass(frozen=True)
class Choice:
    """How channels are chosen.

    Args:
        scope: `local`: every layer loses the same share; `global`: channels of all layers compete, by their scores
            relative to the mean of their layer.
        shares: Share that goes, by patterns of layers' names, for those layers only; the first that fits counts.
        minimum: Channels that every layer keeps.
        round_to: Widths are rounded up to a multiple of it, as far as there are channels.
    """

    scope: Scope = "local"
    shares: Mapping[str, float] = field(default_factory=dict)
    minimum: int = 1
    round_to: int = 1


def plan_by_share(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    share: float,
    choice: Choice,
    why: Mapping[str, Any],
) -> Plan:
    """A plan by which a share of the channels goes.

    Args:
        network: The unpruned network.
        groups: Of its channels.
        scores: Of the channels of each group [width], by name.
        share: Of the channels that go, in [0, 1).
        choice: How they are chosen.
        why: Noted in the plan.

    Raises:
        Mistake: A share outside [0, 1), a pattern that fits no layer, or a layer that would lose all its filters.
    """
    for each in (share, *choice.shares.values()):
        if not 0 <= each < 1:
            raise Mistake(f"a share of {each:g} cannot be pruned: it is at least 0 and less than 1")
    kept = kept_channels(groups, scores, share, choice)
    return plan_of(network, groups, kept, dict(why) | {"share": share} | _choice(choice))


def plan_to_budget(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    budget: float,
    of: Of,
    costs: Costs,
    choice: Choice,
    why: Mapping[str, Any],
    measure: Callable[[nn.Module], float] | None = None,
) -> Plan:
    """A plan by which the network costs at most a share of what it did, and as little less as the widths allow.

    Args:
        network, groups, scores, choice, why: See `plan_by_share`.
        budget: Share of the cost that is left, in (0, 1).
        of: Executed multiply-adds, parameters or measured latency.
        costs: Of the network by its widths.
        measure: Share of the unpruned network's latency that a network takes; needed for `latency`.

    Raises:
        Mistake: The budget is outside (0, 1) or below what is left when every layer is at its minimum.
    """
    if not 0 < budget < 1:
        raise Mistake(f"a budget of {budget:g} is not a share of what the network costs: it lies between 0 and 1")

    def left(share: float, choice: Choice = choice) -> float:
        kept = kept_channels(groups, scores, share, choice)
        if of != "latency":
            return costs.of({name: len(channels) for name, channels in kept.items()})[of] / costs.dense[of]
        assert measure is not None
        small = copy.deepcopy(network)
        remove(small, plan_of(network, groups, kept, {}))
        return measure(small)

    low, high = 0.0, LARGEST_SHARE
    least = left(high)
    if least > budget:
        raise Mistake(
            f"a budget of {budget:g} of {of} is below what this plan can reach: {least:.3f} is left with "
            f"{_at_least(choice)} in every layer, and layers that stay whole; give a larger budget or a smaller minimum"
        )
    reached = least
    for _ in range(MEASUREMENTS if of == "latency" else HALVINGS):
        middle = (low + high) / 2
        cost = left(middle)
        if cost <= budget:
            high, reached = middle, cost
        else:
            low = middle
    told = dict(why) | {"budget": budget, "of": of, "reached": round(reached, 4)}
    if choice.round_to > 1 and of != "latency":
        unrounded = left(high, Choice(choice.scope, choice.shares, choice.minimum))
        told["rounding_costs"] = round(reached - unrounded, 4)
    return plan_by_share(network, groups, scores, high, choice, told)


def kept_channels(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], share: float, choice: Choice
) -> dict[str, list[int]]:
    """Channels that each group keeps, ascending, by name.

    Args:
        groups, scores, share, choice: See `plan_by_share`.
    """
    units = {group.name: _units(group, scores[group.name]) for group in groups}
    own = {group.name: _own_share(group.name, choice.shares) for group in groups}
    if absent := [p for p in choice.shares if not any(fnmatchcase(group.name, p) for group in groups)]:
        names = ", ".join(group.name for group in groups)
        raise Mistake(f"no layer that can be pruned is called {absent[0]}; there are {names}")
    counts = {}
    competing = [name for name in units if own[name] is None]
    threshold = _threshold([units[name] for name in competing], share) if choice.scope == "global" else None
    for group in groups:
        values, given = units[group.name], own[group.name]
        if given is not None or threshold is None:
            count = kept_count(group.units, share if given is None else given)
        else:
            count = int((values > threshold).sum())
        counts[group.name] = _rounded(count, group, choice)
    kept = {}
    for group in groups:
        chosen = keep_largest(units[group.name], counts[group.name]).tolist()
        kept[group.name] = [unit + r * group.units for r in range(group.repeats) for unit in chosen]
    return kept


def _rounded(count: int, group: ChannelGroup, choice: Choice) -> int:
    """How many units a group keeps of those that were chosen, by the minimum and the multiple of channels."""
    channels = max(count * group.repeats, choice.minimum)
    channels = -(-channels // choice.round_to) * choice.round_to
    return min(group.units, -(-channels // group.repeats))


def _units(group: ChannelGroup, scores: Tensor) -> Tensor:
    """Scores of what goes at once [units], relative to their mean."""
    units = scores.view(group.repeats, group.units).mean(0)
    mean = units.mean()
    return units / mean if mean > 0 else units


def _threshold(scores: Sequence[Tensor], share: float) -> Tensor:
    ordered = torch.cat(list(scores)).sort().values
    return ordered[int(len(ordered) * share)] if share else ordered[0] - 1


def _own_share(name: str, shares: Mapping[str, float]) -> float | None:
    return next((share for pattern, share in shares.items() if fnmatchcase(name, pattern)), None)


def _at_least(choice: Choice) -> str:
    least = max(choice.minimum, choice.round_to)
    return f"at least {least} channel{'s' if least > 1 else ''}"


def _choice(choice: Choice) -> dict[str, Any]:
    told: dict[str, Any] = {"scope": choice.scope, "minimum": choice.minimum}
    if choice.round_to > 1:
        told["round_to"] = choice.round_to
    if choice.shares:
        told["shares"] = dict(choice.shares)
    return told
