"""What a class takes: its arguments, those of its parents included, with kind, default and what its docstring says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser


class Argument(NamedTuple):
    """An argument of a class.

    Args:
        name: of the argument.
        kind: its type in short.
        about: what the docstring says of it; empty where it says nothing.
        default: what it is where nobody says.
        required: whether somebody has to.
    """

    name: str
    kind: str
    about: str
    default: str
    required: bool


def arguments_of(target: Any) -> Iterator[Argument]:
    """The arguments of a class or function that a config may set.

    Args:
        target: a class, or a function that builds something.
    """
    parser = ArgumentParser(exit_on_error=False)
    parameters = inspect.signature(target).parameters.values()
    required_names = {each.name for each in parameters if each.default is each.empty}
    if inspect.isclass(target):
        parser.add_class_arguments(target, fail_untyped=False)
    else:
        parser.add_function_arguments(target, fail_untyped=False)
    for action in parser._actions:
        if action.dest == "help" or action.dest.endswith(".help") or "." in action.dest:
            continue
        about = "" if action.help in (None, "==SUPPRESS==") else " ".join(str(action.help).split())
        hint = getattr(action, "_typehint", action.type)
        required = action.dest in required_names
        yield Argument(action.dest, _short(hint), about, str(action.default), required)


def summary_of(target: Any) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(target) or "").split("\n\n")[0].split())


def _short(hint: Any) -> str:
    text = hint.__name__ if inspect.isclass(hint) and not getattr(hint, "__args__", ()) else str(hint)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)
    text = re.sub(r"(?:Optional|Union)\[(.+)\]", lambda match: match[1].replace(", ", " | "), text)
    return text.replace(" | NoneType", "").replace(" | None", "")
