"""One line for a mistake in a config: the key, what is wrong with it, and the nearest valid choice."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from exp.helping import SCREENS
from exp.recipes import recipes

# What people set, and what it is called elsewhere.
EVERYDAY = tuple(line.option for lines in SCREENS["fit"].values() for line in lines)
ALIASES = {
    "batch": "data.batch_size",
    "device": "trainer.accelerator",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "model.optimizer.lr",
    "lr0": "model.optimizer.lr",
    "name": "experiment",
    "output": "runs",
    "output_dir": "runs",
    "project": "runs",
    "seed": "seed_everything",
    "workers": "data.num_workers",
}

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'|class_path='([^']+)'")
_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_NAME = re.compile(r"Expected a dot import path string: (\S+)|Import path (\S+) |No module named '([^']+)'")
_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_UNKNOWN = re.compile(r"unrecognized arguments: (\S+)")
_LITERAL = re.compile(r"typing\.Literal\[([^\]]+)\]")
_EXPECTED = re.compile(r"Expected an? <class '([^']+)'>")
_GIVEN = re.compile(r"(?:Got value|Given value): (.+?)(?:\. Got value|\n|$)")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
_MISSING = re.compile(r"^(?:Parser key \"\w*\":\s*)?the following arguments are required: ([^\n]+)", re.MULTILINE)
_REQUIRED = re.compile(r"class_path '([^']+)':\n\s*the following arguments are required: ([^\n]+)")
_LENGTH = re.compile(r"Expected a tuple with (\d+) elements\. Got value: ([^\n]+)")
_FILE = re.compile(r"File does not exist: '([^']+)'")


def explain(message: str, parser: ArgumentParser) -> str:
    """Turns the parser's report into one line.

    Args:
        message: the text of jsonargparse's error.
        parser: the parser that raised it, for the names that it knows.
    """
    place = _place(message)
    if match := _UNKNOWN.search(message):
        classes = [a or b for a, b in _CLASS.findall(message)]
        return _unknown_of(place, classes[-1], match[1]) if classes else _unknown(match[1], parser)
    if match := _FILE.search(message):
        path = Path(match[1])
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        beside = [f"{shown.parent / p.name}" for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        return f"{place}: no such file: {shown}{_nearest(str(shown), beside)}"
    if match := _OPTION.search(message):
        key = match[1]
        classes = [a or b for a, b in _CLASS.findall(message)]
        if not classes:
            top = key.split(".")[0]
            return f"unknown key '{top}'{_nearest(top, {d.split('.')[0] for d in _dests(parser)})}"
        name = key.removeprefix("init_args.").split(".")[0]
        if classes[-1].startswith("lightning."):
            return f"{place}: '{name}' belongs to no class: a config that changes another goes after the one it changes"
        near = _nearest(name, _arguments(classes[-1])) or _everyday(name, place.partition(".")[0])
        return f"{place}: {classes[-1]} has no argument '{name}'{near}"
    if "class_path" not in message and (match := _MISSING.search(message)):
        missing = [key.strip() for key in match[1].split(",")]
        if {"model", "data"} <= set(missing):
            return "no config is given: `exp configs` lists those that there are, and --config FILE takes your own"
        return f"{' and '.join(missing)}: missing; give it in a config or by --{missing[0]}"
    if match := _REQUIRED.search(message):
        return f"{place}: {match[1]} needs {match[2]}"
    if match := _LENGTH.search(message):
        return f"{place}: expected {match[1]} values, got {match[2]}"
    if match := _ATTRIBUTE.search(message):
        known = [name for name in dir(importlib.import_module(match[1])) if not name.startswith("_")]
        return f"{place}: {match[1]} has no '{match[2]}'{_nearest(match[2], known)}"
    number = re.search(r"Expected a <class '(float|int)'>", message)
    if (match := _NAME.search(message)) and not (number and number.start() < match.start()):
        name = next(group for group in match.groups() if group)
        return f"{place}: no class '{name}'{_nearest(name, _classes())}"
    # The innermost report comes first.
    value = _GIVEN.search(message)
    if value and (literals := _LITERAL.findall(message)):
        choices = [choice.strip().strip("'") for group in literals for choice in group.split(",")]
        given = value[1].strip()
        return f"{place}: '{given}' is not a choice{_nearest(given, dict.fromkeys(choices))}"
    expected = [name.split(".")[-1] for name in _EXPECTED.findall(message) if "NoneType" not in name]
    if value and expected:
        return f"{place}: expected {' or '.join(dict.fromkeys(expected))}, got '{value[1].strip()}'"
    return " ".join(message.split())


def _unknown(option: str, parser: ArgumentParser) -> str:
    """What is said to an option that there is not, or to a word where none is expected."""
    if not option.startswith("-"):
        if Path(option).suffix in (".yaml", ".yml") or option in {each.name for each in recipes()}:
            return f"'{option}' stands among the options: say --config={option}, or put it right behind the command"
        return f"'{option}' belongs to no option"
    key = option.lstrip("-").split("=")[0]
    near = _everyday(key) or _nearest(key, _dests(parser) | set(EVERYDAY))
    return f"unknown option '{key}'{near}"


def _unknown_of(place: str, class_path: str, option: str) -> str:
    """What is said to a value within a part of a class that has no such part."""
    name, _, rest = option.lstrip("-").split("=")[0].partition(".")
    near = difflib.get_close_matches(name, _arguments(class_path), n=1, cutoff=0.5)
    place = ".".join(part for part in place.split(".") if part != "init_args")
    inner = f".{rest}" if rest else ""
    hint = f"did you mean '{place}.{near[0]}{inner}'?" if near else f"--{place}.help {class_path} lists what there is"
    return f"unknown option '{place}.{name}{inner}': {class_path} has no '{name}'; {hint}"


def _everyday(key: str, part: str = "") -> str:
    """The option that people mean by the last word of another one, or by what it is called elsewhere.

    Args:
        key: what was typed.
        part: the part of the config that it has to be in; any if empty.
    """
    last = key.rpartition(".")[2].replace("-", "_")
    meant = [ALIASES.get(last, "")] + [each for each in EVERYDAY if each.rpartition(".")[2] == last]
    return next((f"; did you mean '{each}'?" for each in meant if each.startswith(part) and each not in ("", key)), "")


def first_line(error: Exception) -> str:
    """What another's error says, as far as it fits into a line; its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def denied(message: str) -> str | None:
    """The class or function that the parser was not allowed to import, if that is what it reports."""
    match = _DENIED.search(message)
    return match[1] if match else None


def refusal(message: str) -> str:
    """What a class said when it refused its arguments, without the parser's account of the types that it tried."""
    # The innermost report comes last.
    report = message.rpartition("Errors:")[2]
    if match := re.match(r"\n\s*- (.+?)(?=\n\s*- |\n\s*Given value type)", report, re.DOTALL):
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
    return f"; choose from {', '.join(known)}" if 0 < len(known) <= 20 else ""


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
