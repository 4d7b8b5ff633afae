"""Where a user's own modules are found: the user's words name them, and no others are looked for.

The folder that a command is started in is not on the import path: a file that happens to lie there would be imported in
place of a library.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

# A name of a class, without or with its packages, in a text of other things.
_NAMES = re.compile(r"(?<![\w./-])[^\W\d]\w*(?:\.[^\W\d]\w*)*(?![\w/-])")
# The options that take classes.
_TAKING_CLASSES = ("--trainer.", "--model", "--data")


def top_package(path: str) -> str:
    """The package, or the module, that a dotted name begins with."""
    return path.partition(".")[0]


def config_files(argv: list[str]) -> list[Path]:
    """The config files that a command names."""
    files = []
    for i, argument in enumerate(argv):
        if argument in ("-c", "--config"):
            files.append(Path(argv[i + 1] if i + 1 < len(argv) else ""))
        elif argument.startswith("--config="):
            files.append(Path(argument.removeprefix("--config=")))
    return files


def typed_names(argv: list[str]) -> set[str]:
    """What may be the name of a class in a command; what is a file or a folder is none."""
    names: set[str] = set()
    for i, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        value = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
        if option.startswith(_TAKING_CLASSES) and not os.path.exists(value):
            names.update(name for name in _NAMES.findall(value) if not os.path.exists(name))
    return names


def own_modules(argv: list[str]) -> tuple[set[str], list[Path]]:
    """The packages that a user names in a command and its configs, and the folders that they may lie in."""
    files = [path for path in config_files(argv) if path.is_file()]
    names = typed_names(argv).union(*(_NAMES.findall(path.read_text(errors="replace")) for path in files))
    return {top_package(name) for name in names if "." in name}, [*(path.parent for path in files), Path.cwd()]


def make_importable(packages: Iterable[str], folders: Iterable[Path]) -> None:
    """Puts the folder that has a user's own module behind everything else that is imported from.

    Args:
        packages: what the user has named; installed ones are found without this.
        folders: where to look for the others.
    """
    for package in sorted(packages):
        for folder in folders:
            lies_there = (folder / f"{package}.py").is_file() or (folder / package / "__init__.py").is_file()
            if lies_there and not is_importable(package):
                sys.path.append(str(folder.resolve()))


def is_importable(package: str) -> bool:
    """Whether Python finds a package; it is not imported."""
    if package in sys.modules:
        return True
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:
        return False
