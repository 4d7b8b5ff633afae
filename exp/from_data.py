"""Values of a model that its data say, `from_data: {network.num_classes: num_classes}`: counted before it is built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from datamodules import DataError, DataModule
from exp.usage import ConfigError

KEY = "from_data"
_WITHIN = "init_args"


def read_off(data: Any, wanted: Mapping[str, str], typed: Iterable[str]) -> dict[str, Any]:
    """What the data say of each value that a config wants of them.

    Args:
        data: The data module.
        wanted: Keys of the model, dotted, without `init_args`, and the attribute of the data that each gets.
        typed: Options of the command: a value that is among them is left as it is.

    Returns:
        The values by key; empty where the data cannot be opened, which whoever uses them says.

    Raises:
        ConfigError: The data have no such attribute.
    """
    given = {re.sub(rf"\.{_WITHIN}(?=\.|$)", "", option.partition("=")[0]) for option in typed}
    open_ones = {key: name for key, name in wanted.items() if f"--model.{key}" not in given}
    if not open_ones or not isinstance(data, DataModule):
        return {}
    try:
        data.setup("validate")
    except DataError:
        return {}
    for key, name in open_ones.items():
        if not hasattr(data, name):
            raise ConfigError(f"{KEY}.{key}: {type(data).__name__} has no {name}")
    return {key: getattr(data, name) for key, name in open_ones.items()}


def put(config: Any, key: str, value: Any) -> None:
    """Sets a value of a model's config.

    Args:
        config: Of the model, as jsonargparse parsed it or as plain values.
        key: Dotted, without `init_args`.
        value: What it becomes.

    Raises:
        ConfigError: There is no such key.
    """
    *path, last = key.split(".")
    place = _inside(config)
    for name in path:
        place = _inside(place.get(name)) if place is not None else None
    if place is None or last not in place:
        raise ConfigError(f"{KEY}.{key}: the model has no such argument; set `{KEY}: null` and give it by hand")
    place[last] = value


def _inside(config: Any) -> Any:
    """The arguments of a class of a config; of anything else, itself; None where nothing is inside."""
    if config is None or isinstance(config, str | int | float | list):
        return None
    return config.get(_WITHIN, config)
