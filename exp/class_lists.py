"""The classes that a config may name for a part, with a line about each, read from the sources without running them."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Where the classes of a part are, by the part's key.
ROOMS = {
    "model": ("lightning_modules",),
    "data": ("datamodules",),
    "model.network": tuple(
        f"models.{room}" for room in ("classifiers", "detectors", "segmenters", "pose", "vqa", "self_supervised")
    ),
}
# What the classes of a part are in the end; of networks, whatever is built counts.
KINDS = {"model": "LightningModule", "data": "LightningDataModule"}


@dataclass(frozen=True)
class Known:
    """A class, or a function that builds one.

    Args:
        name: as a person types it.
        path: as a config has it.
        about: the first line of its docstring.
    """

    name: str
    path: str
    about: str


@cache
def classes_of(part: str) -> tuple[Known, ...]:
    """Our classes for a part of a config, in the order of their rooms and names.

    Args:
        part: `model`, `data` or `model.network`.
    """
    found = []
    for room in ROOMS[part]:
        offered = _offered(room)
        for name in sorted(offered, key=str.lower):
            node = offered[name]
            if _fits(node, KINDS.get(part), offered, room):
                about = (inspect.cleandoc(ast.get_docstring(node) or "").splitlines() or [""])[0]
                found.append(Known(name, f"{room}.{name}", about))
    return tuple(found)


def _fits(node: ast.ClassDef | ast.FunctionDef, kind: str | None, known: dict[str, _Node], room: str) -> bool:
    """Whether a definition is of a kind, by the names of its bases, and is not for others to build on only."""
    if isinstance(node, ast.FunctionDef):
        return kind is None and node.returns is not None and "Module" in ast.unparse(node.returns)
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    if "ABC" in bases or any("abstractmethod" in ast.unparse(each) for each in _decorators(node)):
        return False
    if kind is None:
        return True
    return _reaches(bases, kind, known | _defined(room))


def _reaches(bases: set[str], kind: str, known: dict[str, _Node]) -> bool:
    return kind in bases or any(
        _reaches({ast.unparse(base).rpartition(".")[2] for base in above.bases}, kind, known)
        for name in bases
        if isinstance(above := known.get(name), ast.ClassDef)
    )


def _decorators(node: ast.ClassDef) -> list[ast.expr]:
    return [each for part in node.body if isinstance(part, ast.FunctionDef) for each in part.decorator_list]


_Node = ast.ClassDef | ast.FunctionDef


@cache
def _defined(room: str) -> dict[str, _Node]:
    """Everything that the modules of a package define."""
    folder = ROOT.joinpath(*room.split("."))
    return {
        node.name: node
        for path in sorted(folder.glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, _Node)
    }


@cache
def _offered(room: str) -> dict[str, _Node]:
    """What a package lists in `__all__`, of what its modules define."""
    folder = ROOT.joinpath(*room.split("."))
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    defined = _defined(room)
    return {name: defined[name] for name in names if name in defined}
