"""`~` and `~user` at the start of what a person types or writes in a config: a home directory, in one place for all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace


class NoHomeError(ValueError):
    """A path begins with the home directory of somebody who has none here."""


def at_home(value: Any) -> Any:
    """A value of a config with the home directories of its paths spelled out, in whatever it holds.

    A text is taken for a path if it begins with `~` and names a user who exists, or goes on with `/`.

    Args:
        value: a text, path, list, dict or namespace of such, or anything else, which stays as it is.

    Raises:
        NoHomeError: there is no such user.
    """
    if isinstance(value, Namespace):
        return Namespace(**at_home(vars(value)))
    if isinstance(value, dict):
        return {key: at_home(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(at_home, value))
    if isinstance(value, Path):
        return type(value)(at_home(str(value)))
    return _spelled_out(value) if isinstance(value, str) else value


def argument_at_home(argument: str) -> str:
    """An argument of a command, `~/x` or `--option=~/x`, with the home directory spelled out.

    A lone `~` is what YAML writes for nothing, where it is the value of an option.

    Raises:
        NoHomeError: there is no such user.
    """
    if not argument.startswith("-"):
        return _spelled_out(argument)
    option, equals, value = argument.partition("=")
    return argument if value == "~" else option + equals + _spelled_out(value)


def _spelled_out(text: str) -> str:
    if not text.startswith("~"):
        return text
    spelled = os.path.expanduser(text)
    if spelled.startswith("~") and "/" in spelled:
        user = text.partition("/")[0]
        raise NoHomeError(f"{text}: {user} is nobody's home directory; write ./{text} for a folder of that name")
    return spelled
