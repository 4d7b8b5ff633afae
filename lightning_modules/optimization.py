"""What a task trains with: parts with an optimiser each, and quantities that follow a schedule over the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.parameter_groups import DecayAll, LayerDecay, parameter_groups
from lightning_modules.restoring import adopted, by_part
from lightning_modules.schedules import Constant, Schedule
from models.mistakes import Mistake

MakeOptimizer = Callable[[Iterable], Optimizer]


@dataclass
class Part:
    """A part of what a task trains, with its own optimiser, groups, schedules and clipping.

    Args:
        module: Its trainable parameters are trained; no two parts share one.
        optimizer: Called with the parameter groups, e.g. `torch.optim.SGD`.
        schedule: The learning rate per optimiser step.
        schedules: Other quantities of the optimiser over the steps, by their names in its parameter groups.
        layer_decay: Learning rates that fall with a layer's distance from the head.
        lr_multipliers: Factors of the learning rate by a text that parameter names contain.
        decay_all: What decays beside weights of more than one dimension, see `parameter_groups`.
        clip: Largest norm of the part's gradient; None leaves clipping to the trainer.
    """

    module: nn.Module
    optimizer: MakeOptimizer = torch.optim.AdamW
    schedule: Schedule = field(default_factory=Constant)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    layer_decay: LayerDecay | None = None
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    decay_all: DecayAll = False
    clip: float | None = None

    def groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups of the part, see `parameter_groups`."""
        return parameter_groups(self.module, lr, weight_decay, self.layer_decay, self.lr_multipliers, self.decay_all)

    def build(self, scale: float = 1.0) -> tuple[Optimizer, dict[str, Any]]:
        """The optimiser of the part, and its options before any schedule and any group's factor.

        Args:
            scale: Factor of the learning rate, for the batch in use.
        """
        options = dict(self.optimizer([nn.Parameter(torch.zeros(1))]).defaults)
        options["lr"] *= scale
        return self.optimizer(self.groups(options["lr"], options.get("weight_decay", 0.0))), options

    def quantities(
        self, optimizer: Optimizer, options: Mapping[str, Any], steps_per_epoch: int, total_steps: int
    ) -> dict[str, Quantity]:
        """What of the optimiser changes over the steps, by its name in the parameter groups.

        Args:
            optimizer, options: What `build` returned.
            steps_per_epoch, total_steps: Optimiser steps of an epoch and of the training.

        Raises:
            Mistake: A schedule of something that the optimiser does not have, or that is no number.
        """
        found = {}
        for key, schedule in {"lr": self.schedule, **self.schedules}.items():
            if options.get(key) == 0 and isinstance(schedule, Constant):
                # A network that is to stay as it is, such as one that others are compared with.
                continue
            if not isinstance(base := options.get(key), float | int) or isinstance(base, bool) or not base:
                numbers = [name for name, value in options.items() if type(value) in (int, float) and value]
                raise Mistake(
                    f"schedules: {type(optimizer).__name__} has no {key} other than 0 that could follow a schedule; it "
                    f"has {', '.join(numbers)}"
                )
            found[key] = follow_in_groups(optimizer, key, schedule, base, steps_per_epoch, total_steps)
        return found


@dataclass(frozen=True)
class Quantity:
    """A number that changes from one optimiser step to the next, and depends on nothing but the step.

    Args:
        at: Its value at a step, from 0.
        put: Puts a value where it is used.
    """

    at: Callable[[int], float]
    put: Callable[[float], None]


def follow_in_groups(
    optimizer: Optimizer, key: str, schedule: Schedule, base: float, steps_per_epoch: int, total_steps: int
) -> Quantity:
    """A quantity of an optimiser, such as its learning rate or weight decay, that follows a schedule.

    Groups keep their proportions to each other, so those that do not decay never will.

    Args:
        optimizer: As it was built.
        key: What it is called in the parameter groups, such as `lr` or `weight_decay`.
        schedule: What is followed.
        base: The value of a group whose factor is 1, to which the schedule is relative.
        steps_per_epoch, total_steps: Optimiser steps of an epoch and of the training.
    """
    table = schedule.table(base, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    # Of the groups as they were built: a state that is loaded brings groups of its own.
    own = [group[key] for group in optimizer.param_groups]

    def at(step: int) -> float:
        return float(table[min(step, total_steps - 1)])

    def put(value: float) -> None:
        for group, first in zip(optimizer.param_groups, own, strict=True):
            group[key] = first * (value / base)

    return Quantity(at, put)


def clip_parts(parts: Iterable[Part], most: float | None, algorithm: str | None) -> bool:
    """Clips the gradient of each part as it says, and those of the others, which say nothing, together.

    Args:
        parts: All of a training.
        most: Largest norm of the others' gradient, or value in it; None leaves it as it is.
        algorithm: `norm`, as by default, or `value`.

    Returns:
        Whether a part says anything; nothing is clipped otherwise.
    """
    every = list(parts)
    own = [(part, part.clip) for part in every if part.clip is not None]
    for part, clip in own:
        nn.utils.clip_grad_norm_(part.module.parameters(), clip)
    if own and most is not None:
        others = [each for part in every if part.clip is None for each in part.module.parameters()]
        clip_them = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
        clip_them(others, most)
    return bool(own)


class JointOptimizer(Optimizer):
    """Several optimisers that take their steps together, as one: a step of the training stays one step.

    Args:
        optimizers: By the name of their part; no two have a parameter in common.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self.optimizers = dict(optimizers)
        super().__init__([group for each in self.optimizers.values() for group in each.param_groups], {})
        self._join()

    def _join(self) -> None:
        self.param_groups = [group for each in self.optimizers.values() for group in each.param_groups]
        self.state = _JointState([each.state for each in self.optimizers.values()])  # type: ignore[assignment]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluates the closure once, then takes a step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for each in self.optimizers.values():
            each.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of each, by part."""
        return {name: each.state_dict() for name, each in self.optimizers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of each.

        Raises:
            Mistake: The state is of other parts.
        """
        if state_dict.keys() != self.optimizers.keys():
            raise Mistake(
                f"the optimiser's state is of the parts {', '.join(state_dict)}, but the task trains "
                f"{', '.join(self.optimizers)}"
            )
        for name, each in self.optimizers.items():
            each.load_state_dict(state_dict[name])
        self._join()


def restored(
    parts: Mapping[str, Part], built: Mapping[str, tuple[Optimizer, Any]], state: Mapping[str, Any]
) -> dict[str, Any]:
    """The saved state of what a task trains with, as the state of an optimiser with today's options.

    Args:
        parts: What is trained, by name.
        built: What `build` of each returned.
        state: What `Optimizer.state_dict` gave, of the only part or of all by name.

    Raises:
        Mistake: The state is of other parts or parameters, or does not fit an option.
    """
    found = by_part(state, parts)
    new = {
        name: adopted(found[name], built[name][0], part.optimizer, {"lr", *part.schedules})
        for name, part in parts.items()
    }
    return dict(new) if len(new) > 1 else dict(*new.values())


class _JointState(MutableMapping[Tensor, Any]):
    """The states of several optimisers as one mapping."""

    def __init__(self, states: list[MutableMapping[Tensor, Any]]) -> None:
        self.states = states

    def _owner(self, parameter: Tensor) -> MutableMapping[Tensor, Any]:
        for state in self.states:
            if parameter in state:
                return state
        raise KeyError(parameter)

    def __getitem__(self, parameter: Tensor) -> Any:
        return self._owner(parameter)[parameter]

    def __setitem__(self, parameter: Tensor, value: Any) -> None:
        self._owner(parameter)[parameter] = value

    def __delitem__(self, parameter: Tensor) -> None:
        del self._owner(parameter)[parameter]

    def __iter__(self) -> Iterator[Tensor]:
        return (parameter for state in self.states for parameter in state)

    def __len__(self) -> int:
        return sum(map(len, self.states))
