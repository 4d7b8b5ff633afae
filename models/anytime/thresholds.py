"""Thresholds from a validation set: where each sample leaves, what that costs, and which thresholds fit a budget.

References: "Multi-Scale Dense Networks for Resource Efficient Image Classification", arXiv 1703.09844, section 3
(budgeted batch classification); thresholds under a cost constraint as in arXiv 2105.15075, section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from models.anytime.confidence import confidence
from models.anytime.policy import ALWAYS, NEVER
from models.mistakes import Mistake

# p / 20 for p = 1 .. 39: the plans of the published curves, from mostly early to mostly late exits.
PUBLISHED_RATIOS = [p * 1.0 / 20 for p in range(1, 40)]
# Plans that are searched for a budget; the costs of neighbours differ by less than a percent of the network's.
_PLANS = 401
_PLANS_AT_ONCE = 32
# Where the search for better thresholds begins, over how many plans the price of accuracy is measured, and how often
# it goes over the exits.
_STARTS, _SLOPE, _SWEEPS = 48, 20, 3


@dataclass(frozen=True)
class Outcomes:
    """What every exit says of every sample of a data set: all that thresholds are solved and judged on.

    Args:
        confidence: float32 [E, N], cheapest exit first; larger is surer.
        prediction: int64 [E, N], the classes.
        target: int64 [N], the labels.
        criterion: What the confidence is (see `models.anytime.CRITERIA`).

    Raises:
        Mistake: Shapes that do not fit each other, no sample, or a confidence that is not a number.
    """

    confidence: Tensor
    prediction: Tensor
    target: Tensor
    criterion: str = "max_prob"

    def __post_init__(self) -> None:
        shape = self.confidence.shape
        if len(shape) != 2 or shape != self.prediction.shape or shape[1:] != self.target.shape or 0 in shape:
            raise Mistake(
                f"outcomes need confidence and prediction [E, N] and target [N], not {tuple(shape)}, "
                f"{tuple(self.prediction.shape)} and {tuple(self.target.shape)}"
            )
        if not self.confidence.isfinite().all():
            raise Mistake("the confidence of some samples is not finite: the network's logits are broken")

    @classmethod
    def from_logits(cls, logits: Sequence[Tensor] | Tensor, target: Tensor, criterion: str = "max_prob") -> "Outcomes":
        """Outcomes of logits [E, N, K] (or E tensors [N, K]) for labels [N]."""
        sure = torch.stack([confidence(exit, criterion) for exit in logits])
        return cls(sure, torch.stack([exit.argmax(-1) for exit in logits]), target, criterion)

    @property
    def correct(self) -> Tensor:
        """Whether each exit is right about each sample, [E, N]."""
        return self.prediction == self.target

    @property
    def accuracy(self) -> Tensor:
        """Share of samples that each exit is right about, [E]: anytime prediction."""
        return self.correct.double().mean(1)


@dataclass(frozen=True)
class Evaluation:
    """What happens when samples leave early.

    Args:
        accuracy: Share of the samples that were classified rightly where they left.
        cost: Expected multiply-adds of a sample.
        exit_shares: Share of the samples that leave at each exit, [E].
        exits: Exit of each sample, 0 .. E - 1, [N].
        predictions: Class of each sample, by the exit where it left, [N].
    """

    accuracy: float
    cost: float
    exit_shares: Tensor
    exits: Tensor
    predictions: Tensor


def exit_distribution(ratio: float, num_exits: int) -> Tensor:
    """Planned share of samples at each exit, q_k proportional to ratio^k for k = 1 .. E.

    Below 1 most samples leave early, above 1 late. In float32, as the published thresholds need.

    Args:
        ratio: Positive.
        num_exits: E.

    Returns:
        float32 [E], with the sum 1.

    Raises:
        Mistake: A ratio that is not positive, or so large that its power overflows.
    """
    if not ratio > 0:
        raise Mistake(f"the ratio of neighbouring exits' shares must be positive, not {ratio}")
    weights = torch.exp(torch.log(torch.tensor([ratio])) * torch.arange(1.0, num_exits + 1))
    if not weights.sum().isfinite() or weights.sum() == 0:
        raise Mistake(f"ratio={ratio} is too far from 1 for {num_exits} exits")
    return weights / weights.sum()


def geometric_thresholds(confidence: Tensor, shares: Tensor) -> Tensor:
    """Thresholds with which planned shares of the samples leave at each exit.

    At exit k the floor(N q_k) surest of the samples that are still there leave, and with them all that are as sure.
    Where that is none, or more than are left, the threshold is `NEVER`; that of the last exit is `ALWAYS`. N q_k is a
    float32 product, as published.

    Args:
        confidence: float32 [E, N].
        shares: q, float32 [E], or [P, E] for P plans at once (see `exit_distribution`).

    Returns:
        float32, of the shape of `shares`.
    """
    plans = shares.reshape(-1, shares.shape[-1]).to(confidence)
    samples = confidence.shape[1]
    wanted = torch.floor(samples * plans).long()
    thresholds = torch.full_like(plans, NEVER)
    gone = torch.zeros(len(plans), samples, dtype=torch.bool, device=confidence.device)
    for k, sure in enumerate(confidence[:-1]):
        surest, order = sure.sort(descending=True)
        # How many of the remaining samples are at least as far up in the order, for each place in it.
        counted = (~gone[:, order]).int().cumsum(1)
        place = torch.searchsorted(counted, wanted[:, k : k + 1].int()).squeeze(1)
        found = (wanted[:, k] > 0) & (place < samples)
        thresholds[:, k] = torch.where(found, surest[place.clamp(max=samples - 1)], NEVER)
        gone |= sure >= thresholds[:, k : k + 1]
    thresholds[:, -1] = ALWAYS
    return thresholds.reshape(shares.shape)


def evaluate(outcomes: Outcomes, thresholds: Sequence[float] | Tensor, costs: Sequence[float]) -> Evaluation:
    """Each sample leaves at the first exit that is sure enough, and at the last one in any case.

    Args:
        outcomes: What every exit says of the samples to judge on.
        thresholds: One for each exit, [E].
        costs: Multiply-adds up to each exit, everything before it included, [E].

    Raises:
        Mistake: Another number of thresholds or costs than exits.
    """
    if len(thresholds) != len(outcomes.confidence):
        raise Mistake(f"{len(thresholds)} thresholds for {len(outcomes.confidence)} exits")
    limits = torch.as_tensor(thresholds, dtype=torch.float32, device=outcomes.confidence.device)
    return evaluate_exits(outcomes, _exits(outcomes.confidence, limits[None])[0], costs)


def evaluate_exits(outcomes: Outcomes, exits: Tensor, costs: Sequence[float]) -> Evaluation:
    """As `evaluate`, for exits [N] that are given, such as `shuffled(exits)`."""
    if len(costs) != len(outcomes.confidence):
        raise Mistake(f"{len(costs)} costs for {len(outcomes.confidence)} exits")
    predictions = outcomes.prediction.gather(0, exits[None])[0]
    shares = exits.bincount(minlength=len(costs)).double() / len(exits)
    cost = (shares * torch.tensor(costs, dtype=torch.float64, device=shares.device)).sum()
    return Evaluation((predictions == outcomes.target).double().mean().item(), cost.item(), shares, exits, predictions)


def shuffled(exits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The same exits [N], given to the samples at random: a baseline of exactly the same cost."""
    return exits[torch.randperm(len(exits), generator=generator).to(exits.device)]


def pareto_thresholds(outcomes: Outcomes, costs: Sequence[float]) -> Tensor:
    """Thresholds of which none found is both cheaper and more accurate, by rising cost.

    Beginning at geometric plans all along the range of costs, accuracy - price * cost is maximised one threshold at a
    time, the price being what accuracy costs there. Everything met on the way competes, the plans too.

    Args:
        outcomes: What every exit says of the validation samples.
        costs: Multiply-adds up to each exit, [E].

    Returns:
        float32 [P, E].
    """
    _check_costs(outcomes, costs)
    plans = geometric_plans(outcomes.confidence)
    accuracy, cost = _score(outcomes, plans, costs)
    samples = outcomes.confidence.shape[1]
    found = [plans]
    for start in range(0, len(plans), len(plans) // _STARTS):
        low, high = max(start - _SLOPE, 0), min(start + _SLOPE, len(plans) - 1)
        price = ((accuracy[high] - accuracy[low]) / (cost[high] - cost[low]).clamp(min=1e-6 * costs[-1])).item()
        # Small steps stay near the start's cost, large ones find what is far from any plan.
        for window in (max(samples // 16, 1), samples):
            found.append(_ascend(outcomes, plans[start], costs, max(price, 1e-3 / costs[-1]), window))
    thresholds = torch.cat(found)
    accuracy, cost = _score(outcomes, thresholds, costs)
    # By cost, and of equal ones the more accurate first; then only what is more accurate than all cheaper ones.
    order = (-accuracy).argsort(stable=True)
    order = order[cost[order].argsort(stable=True)]
    ranked = accuracy[order]
    best_before = torch.cat([ranked.new_tensor([-1.0]), ranked.cummax(0).values[:-1]])
    return thresholds[order[ranked > best_before]]


def _ascend(outcomes: Outcomes, start: Tensor, costs: Sequence[float], price: float, window: int) -> Tensor:
    """Thresholds [S, E] on the way from a start [E] to a maximum of accuracy - price * cost.

    Each step moves one threshold, past at most `window` samples, to where the sum is largest.
    """
    thresholds, steps = start.clone(), []
    prices = price * torch.tensor(costs, dtype=torch.float64, device=start.device)
    value = outcomes.correct.double() - prices[:, None]
    sure = outcomes.confidence
    surest, order = sure.sort(dim=1, descending=True)
    places = torch.arange(1, sure.shape[1] + 1, device=start.device)
    for _ in range(_SWEEPS):
        before = thresholds.clone()
        for k in reversed(range(len(costs) - 1)):
            leaves = sure >= thresholds[:, None]
            there = ~leaves[:k].any(0)
            # What a sample is worth if it does not leave here.
            later = value[k + 1 :].gather(0, _first(leaves[k + 1 :])[None])[0]
            total = torch.where(there, value[k] - later, 0.0)[order[k]].cumsum(0)
            # Equally sure samples leave together.
            allowed = torch.cat([surest[k, 1:] != surest[k, :-1], there.new_ones(1)])
            allowed &= (places - leaves[k].sum()).abs() <= window
            nobody = leaves[k].sum() <= window
            best = torch.where(allowed, total, -torch.inf).argmax()
            if nobody and total[best] <= 0:
                thresholds[k] = NEVER
            elif allowed[best]:
                thresholds[k] = surest[k, best]
            steps.append(thresholds.clone())
        if torch.equal(before, thresholds):
            break
    return torch.stack(steps)


def geometric_plans(confidence: Tensor) -> Tensor:
    """Thresholds [P, E] of many plans, from everyone leaving first to everyone leaving last."""
    exits = len(confidence)
    # The largest power of the ratio has to be a float32.
    reach = min(6.0, 80.0 / exits)
    # Densest around equal shares, where a little more or less moves the cost most.
    ratios = (reach * torch.linspace(-1, 1, _PLANS, dtype=torch.float64) ** 3).exp().tolist()
    shares = torch.stack([exit_distribution(ratio, exits) for ratio in ratios]).to(confidence.device)
    between = [geometric_thresholds(confidence, some) for some in shares.split(_PLANS_AT_ONCE)]
    first, last = confidence.new_full((2, 1, exits), NEVER)
    first[:] = ALWAYS
    last[:, -1] = ALWAYS
    return torch.cat([first, *between, last])


def _score(outcomes: Outcomes, thresholds: Tensor, costs: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Accuracy and expected cost [P] of thresholds [P, E]."""
    spent = torch.tensor(costs, dtype=torch.float64, device=thresholds.device)
    accuracies, expected = [], []
    for some in thresholds.split(_PLANS_AT_ONCE):
        exits = _exits(outcomes.confidence, some)
        accuracies.append(outcomes.correct.gather(0, exits).double().mean(1))
        expected.append(spent[exits].mean(1))
    return torch.cat(accuracies), torch.cat(expected)


def _exits(confidence: Tensor, thresholds: Tensor) -> Tensor:
    """Exit of each sample, [P, N], for confidence [E, N] and thresholds [P, E]."""
    return torch.stack([_first(confidence >= limits[:, None]) for limits in thresholds])


def _first(leaves: Tensor) -> Tensor:
    """The first exit at which a sample may leave, or the last: bool [E, N] to int64 [N]."""
    return (~leaves[:-1]).long().cumprod(0).sum(0)


def _check_costs(outcomes: Outcomes, costs: Sequence[float]) -> None:
    if len(costs) != len(outcomes.confidence):
        raise Mistake(f"{len(costs)} costs for {len(outcomes.confidence)} exits")
    if costs[0] <= 0 or any(low >= high for low, high in pairwise(costs)):
        raise Mistake(f"costs up to each exit must rise, from above 0: {list(costs)}")
