"""Where a user's own modules are found: the user's words name them, and no others are looked for.

The folder that a command is started in is not on the import path: a file that happens to lie there would be imported in
place of a library.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from exp.arguments import NAMES, config_files, typed_names


def top_package(path: str) -> str:
    """The package, or the module, that a dotted name begins with."""
    return path.partition(".")[0]


def own_modules(argv: list[str]) -> tuple[set[str], list[Path]]:
    """The packages that a user names in a command and its configs, and the folders that they may lie in."""
    files = [path for path in config_files(argv) if path.is_file()]
    names = typed_names(argv).union(*(NAMES.findall(path.read_text(errors="replace")) for path in files))
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
