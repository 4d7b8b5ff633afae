"""One line for a mistake in a config: the key, what is wrong with it, and the nearest valid choice."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any

from jsonargparse import ArgumentParser

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_IMPORT = re.compile(r"Expected a dot import path string: (\S+)|Import path (\S+) |No module named '([^']+)'")
_UNKNOWN = re.compile(r"unrecognized arguments: (\S+)")
_EXPECTED = re.compile(r"Expected an? (?:<class '([^']+)'>|([^.\n]+))")
_GIVEN = re.compile(r"(?:Got value|Given value): (.+)")


def explain(message: str, parser: ArgumentParser) -> str:
    """Turns the parser's report into one line.

    Args:
        message: the text of jsonargparse's error.
        parser: the parser that raised it, for the names that it knows.
    """
    place = _place(message)
    if match := _UNKNOWN.search(message):
        key = match[1].lstrip("-").split("=")[0]
        return f"unknown option '{key}'{_nearest(key, _dests(parser))}"
    classes = _CLASS.findall(message)
    if match := _OPTION.search(message):
        key = match[1]
        if not classes:
            top = key.split(".")[0]
            return f"unknown key '{top}'{_nearest(top, {d.split('.')[0] for d in _dests(parser)})}"
        name = key.removeprefix("init_args.").split(".")[0]
        return f"{place}: {classes[-1]} has no argument '{name}'{_nearest(name, _arguments(classes[-1]))}"
    if match := _IMPORT.search(message):
        name = next(group for group in match.groups() if group)
        return f"{place}: no class '{name}'{_nearest(name, _classes())}"
    value = _GIVEN.findall(message)
    expected = [a or b.strip() for a, b in _EXPECTED.findall(message)]
    expected = list(dict.fromkeys(e.split(".")[-1] for e in expected if "NoneType" not in e))
    if expected and value:
        return f"{place}: expected {' or '.join(expected)}, got '{value[-1].strip()}'"
    return " ".join(message.split())


def refusal(message: str) -> str:
    """What a class said when it refused its arguments, without the parser's account of the types that it tried."""
    if match := re.search(r"Errors:\n  - (.+?)(?=\n  - |\nGiven value type)", message, re.DOTALL):
        return " ".join(match[1].split())
    return message


def _place(message: str) -> str:
    parts: list[str] = []
    for token in re.findall(r'Parser key "[^"]+"|Problem with given class_path', message):
        if match := _KEY.match(token):
            parts.append(match[1])
        else:
            parts.append("init_args")
    while parts and parts[-1] == "init_args":
        parts.pop()
    return ".".join(parts)


def _nearest(name: str, choices: Iterable[str]) -> str:
    known = sorted(choices)
    short = {choice.split(".")[-1]: choice for choice in known}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    near = near or [short[m] for m in difflib.get_close_matches(name.split(".")[-1], short, n=1, cutoff=0.5)]
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; choose from {', '.join(known)}" if len(known) <= 20 else ""


def _dests(parser: ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions if action.dest and action.dest != "help"}


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    target: Any = getattr(importlib.import_module(module), name)
    known = ArgumentParser(exit_on_error=False)
    if inspect.isclass(target):
        known.add_class_arguments(target, fail_untyped=False)
    else:
        known.add_function_arguments(target, fail_untyped=False)
    return [action.dest.split(".")[0] for action in known._actions if action.dest != "help"]


def _classes() -> set[str]:
    """The classes and functions that a config may name in short, from every package of exp."""
    names: set[str] = set()
    for package in ("lightning_modules", "datamodules", "callbacks", "models.classifiers"):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            target = getattr(module, name)
            names.add(name if inspect.isclass(target) else f"{package}.{name}")
    return names
