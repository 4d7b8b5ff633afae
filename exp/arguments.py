"""The words of a command, before they are parsed."""

from __future__ import annotations

import os
import re
from pathlib import Path

# A name of a class, without or with its packages, in a text of other things.
NAMES = re.compile(r"(?<![\w./-])[^\W\d]\w*(?:\.[^\W\d]\w*)*(?![\w/-])")
# The options that take classes.
_TAKING_CLASSES = ("--trainer.", "--model", "--data")


def option(argv: list[str], name: str) -> str | None:
    """The value of an option of a command; None if it is not given."""
    for i, argument in enumerate(argv):
        if argument == name and i + 1 < len(argv):
            return argv[i + 1]
        if argument.startswith(f"{name}="):
            return argument.split("=", 1)[1]
    return None


def without_option(argv: list[str], name: str) -> list[str]:
    """The arguments without an option and its value."""
    rest: list[str] = []
    left = iter(argv)
    for argument in left:
        if argument == name:
            next(left, None)
        elif not argument.startswith(f"{name}="):
            rest.append(argument)
    return rest


def config_files(argv: list[str]) -> list[Path]:
    """The config files that a command names."""
    files = []
    for i, argument in enumerate(argv):
        if argument in ("-c", "--config"):
            files.append(Path(argv[i + 1] if i + 1 < len(argv) else ""))
        elif argument.startswith("--config="):
            files.append(Path(argument.removeprefix("--config=")))
    return files


def files_first(argv: list[str]) -> list[str]:
    """Config files before what is typed, which is meant to change them, wherever it stands."""
    files: list[str] = []
    rest: list[str] = []
    left = iter(argv)
    for argument in left:
        if argument in ("-c", "--config"):
            files += [argument, *(value for value in [next(left, None)] if value is not None)]
        else:
            (files if argument.startswith("--config=") else rest).append(argument)
    return files + rest


def weights_of_parts(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes each `--weights.PART=FILE` out of a command.

    jsonargparse 4.53 reads the second of them as a dict in a dict, and forgets a path that a config gives.
    """
    rest: list[str] = []
    weights: dict[str, str] = {}
    left = iter(argv)
    for argument in left:
        if argument.startswith("--weights."):
            part, equals, file = argument.removeprefix("--weights.").partition("=")
            weights[part] = file if equals else next(left, "")
        else:
            rest.append(argument)
    return rest, weights


def typed_names(argv: list[str]) -> set[str]:
    """What may be the name of a class in a command; what is a file or a folder is none."""
    names: set[str] = set()
    for i, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        value = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
        if option.startswith(_TAKING_CLASSES) and not os.path.exists(value):
            names.update(name for name in NAMES.findall(value) if not os.path.exists(name))
    return names
