"""Weights that networks ask a hub for while they are built: held back where a file is going to give all of them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import constants
from torch import nn
from torchvision.models import WeightsEnum

from exp.messages import first_line
from exp.packaged_weights import DISTRIBUTIONS
from models.official import some

_TIMM: Any = sys.modules[timm.models.build_model_with_cfg.__module__]


class HubError(RuntimeError):
    """Weights that a hub does not give; the message names them and the remedy."""


class _Unasked(dict[str, Any]):
    """Stands for weights of torchvision's that nobody has asked for."""


@contextmanager
def held_back(unasked: Callable[[int], bool] = lambda number: True) -> Iterator[dict[int, nn.Module]]:
    """Builds networks of timm and torchvision without the weights that their `pretrained` or `weights` would download.

    Whatever else the networks know of those weights, such as their pixels, they know all the same.

    Args:
        unasked: Whether a request, counted from 0 in the order of building, is held back.

    Yields:
        The networks whose requests were held back, by the requests' numbers.

    Raises:
        HubError: One of the others was not answered.
    """
    held: dict[int, nn.Module] = {}
    numbers = count()
    load, ask, put = _TIMM.load_pretrained, WeightsEnum.get_state_dict, nn.Module.load_state_dict

    def load_pretrained(model: nn.Module, *args: Any, **options: Any) -> None:
        if unasked(number := next(numbers)):
            held[number] = model
        else:
            _answered(type(model).__name__, load, model, *args, **options)

    def get_state_dict(weights: WeightsEnum, *args: Any, **options: Any) -> Any:
        if unasked(number := next(numbers)):
            return _Unasked(number=number)
        return _answered(str(weights), ask, weights, *args, **options)

    def load_state_dict(module: nn.Module, state_dict: Any, *args: Any, **options: Any) -> Any:
        if isinstance(state_dict, _Unasked):
            held[state_dict["number"]] = module
            return None
        return put(module, state_dict, *args, **options)

    changed: list[tuple[Any, str, Any]] = [
        (_TIMM, "load_pretrained", load_pretrained),
        (WeightsEnum, "get_state_dict", get_state_dict),
        (nn.Module, "load_state_dict", load_state_dict),
    ]
    try:
        for place, name, function in changed:
            setattr(place, name, function)
        yield held
    finally:
        for (place, name, _), function in zip(changed, (load, ask, put), strict=True):
            setattr(place, name, function)


def covered(network: nn.Module, parts: Iterable[nn.Module], model: nn.Module) -> bool:
    """Whether what is left of a network in a model lies within parts of it whose weights a file gives."""
    given = {id(parameter) for part in parts for parameter in part.parameters()}
    left = {id(parameter) for parameter in network.parameters()} & {id(parameter) for parameter in model.parameters()}
    return bool(left) and left <= given


@contextmanager
def _not_waited_for() -> Iterator[None]:
    """Has the hub's cache asked alone where no network leads to the hub, instead of trying for minutes."""
    before = constants.HF_HUB_OFFLINE
    try:
        if not getproxies():
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answered(what: str, ask: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        with _not_waited_for():
            return ask(*args, **options)
    except Exception as error:  # whatever a network, a disk or a hub may answer
        why = some([first_line(error)])
        raise HubError(
            f"no pretrained weights for {what} from the hub ({why}): give the network weights by --weights FILE, take "
            f"one that a package has weights of ({', '.join(DISTRIBUTIONS)}; --weights package), or set its pretrained "
            "to false"
        ) from error
