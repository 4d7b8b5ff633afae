"""What of a checkpoint a training goes on with, where the command asks for other values than it was made with.

Lightning puts the saved state of an optimiser in whole: its options, such as weight decay, with it, and its moments by
the position of a parameter. Here options are the command's, and moments find their parameters by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.mistakes import Mistake
from models.official import some

START_ANEW = "start a new training from its weights by --weights"


def check_network(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Sees that weights are those of a module.

    Args:
        module: as it was built.
        state: parameters and buffers by name, as a checkpoint has them.

    Raises:
        Mistake: names are missing, have no place, or are of another shape.
    """
    own = module.state_dict()
    kinds = {
        "it has nothing for": [name for name in own if name not in state],
        "there is no place for": [name for name in state if name not in own],
        "another shape have": [
            f"{name} ({list(state[name].shape)} there, {list(own[name].shape)} here)"
            for name in own
            if name in state and isinstance(own[name], Tensor) and state[name].shape != own[name].shape
        ],
    }
    if wrong := [f"{kind} {some(names)}" for kind, names in kinds.items() if names]:
        raise Mistake(f"the checkpoint is of another network: {'; '.join(wrong)}")


def by_part(state: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The saved state of each part's optimiser.

    Args:
        state: of the optimiser that a task trains with: of its only part, or of all by name.
        names: the parts that the task trains now.

    Raises:
        Mistake: they are others.
    """
    wanted = list(names)
    found = {wanted[0]: state} if "param_groups" in state else dict(state)
    if set(found) != set(wanted) or ("param_groups" in state and len(wanted) > 1):
        had = "one part" if "param_groups" in state else f"the parts {', '.join(found)}"
        raise Mistake(
            f"the checkpoint's optimiser trained {had}, but the task trains {', '.join(wanted)}: {START_ANEW}"
        )
    return found


def adopted(
    saved: Mapping[str, Any],
    optimizer: Optimizer,
    make: Callable[[Iterable], Optimizer],
    scheduled: Collection[str],
) -> Mapping[str, Any]:
    """The saved state of an optimiser, as the state of one that has been built with the command's options.

    Args:
        saved: what `Optimizer.state_dict` gave; groups name their parameters in `param_names`.
        optimizer: as it was built, before any step.
        make: builds such an optimiser of parameter groups.
        scheduled: options whose value follows a schedule, and is put in at every step.

    Returns:
        The state to load. Options are those of `optimizer`; moments, and what an optimiser counts in its groups, are
        the saved ones of the parameter of the same name.

    Raises:
        Mistake: other parameters are trained, or the optimiser cannot go on with such a state.
    """
    groups, before = optimizer.param_groups, saved["param_groups"]
    if not all("param_names" in group for group in (*groups, *before)):
        # A callback has added groups of its own, and knows what to do about them.
        return saved
    place = {name: i for group in before for name, i in zip(group["param_names"], group["params"], strict=True)}
    home = {name: group for group in before for name in group["param_names"]}
    names = [name for group in groups for name in group["param_names"]]
    if gone := [name for name in names if name not in place]:
        raise Mistake(f"the checkpoint's optimiser did not train {some(gone)}: {START_ANEW}")
    if spare := [name for name in place if name not in set(names)]:
        raise Mistake(f"the checkpoint's optimiser trained {some(spare)}, which stay as they are now: {START_ANEW}")
    options = _options(optimizer)
    number = {name: i for i, name in enumerate(names)}
    new_groups = []
    for group in groups:
        first = home[group["param_names"][0]]
        counted = {key: value for key, value in first.items() if key not in options}
        given = {key: value for key, value in group.items() if key in options or key not in counted}
        new_groups.append(counted | given | {"params": [number[name] for name in group["param_names"]]})
    state = {number[name]: saved["state"][i] for name, i in place.items() if i in saved["state"]}
    changes = {
        key: f"{home[name].get(key)} -> {group[key]}"
        for group in groups
        for name in group["param_names"]
        for key in sorted(options - set(scheduled))
        if key in group and home[name].get(key) != group[key]
    }
    if changes and state:
        _try_a_step(optimizer, make, new_groups, state, ", ".join(f"{key}: {told}" for key, told in changes.items()))
    return {**saved, "state": state, "param_groups": new_groups}


def _options(optimizer: Optimizer) -> set[str]:
    """What of a parameter group the command decides; the rest is what an optimiser counts there, such as its steps."""
    arguments = {
        name
        for kind in type(optimizer).__mro__
        for name in inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    }
    ours = {"name", "param_names", "lr_scale", "lr", "weight_decay"}
    return {key for group in optimizer.param_groups for key in group if key in arguments | ours} - {"params"}


def _try_a_step(
    optimizer: Optimizer,
    make: Callable[[Iterable], Optimizer],
    groups: list[dict[str, Any]],
    state: Mapping[int, Any],
    changes: str,
) -> None:
    """Has a copy of the smallest parameter take a step with the saved state and the new options.

    Raises:
        Mistake: the optimiser cannot.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = min(state, key=lambda i: parameters[i].numel())
    group = next(group for group in groups if index in group["params"])
    copy = nn.Parameter(parameters[index].detach().cpu().clone())
    copy.grad = torch.zeros_like(copy)
    alone = {**group, "param_names": [group["param_names"][group["params"].index(index)]]}
    try:
        probe = make([{**alone, "params": [copy]}])
        probe.load_state_dict({"state": {0: deepcopy(state[index])}, "param_groups": [{**alone, "params": [0]}]})
        probe.step(lambda: 0.0)
    except Exception as error:
        raise Mistake(
            f"the state of the checkpoint's optimiser does not fit {type(optimizer).__name__} with {changes}: leave "
            f"these as they were, or {START_ANEW}"
        ) from error
