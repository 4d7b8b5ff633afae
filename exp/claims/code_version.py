"""Which code a result came from: hashes of the sources that decide it, and versions of the libraries."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What every fit runs through. Of `exp` itself only what shapes a training counts.
PACKAGES = ("models", "lightning_modules", "datamodules", "callbacks", "exp.cli", "exp.fit")
LIBRARIES = ("torch", "torchvision", "lightning", "timm", "albumentations", "numpy")


def code_version(config: dict[str, Any]) -> dict[str, str]:
    """The version of everything that a config's result depends on.

    Sources count by their syntax tree without docstrings: a comment or a reformatted line changes nothing.

    Args:
        config: resolved, as plain values. Packages that its class paths name count too, the user's own included.

    Returns:
        Package or library -> hash of its sources, or its version number.
    """
    found = {name: _source_hash(name) for name in PACKAGES}
    named = {path.split(".")[0] for path in _class_paths(config)}
    ours = {name.split(".")[0] for name in PACKAGES}
    for name in sorted({*LIBRARIES, *named} - ours):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = _source_hash(name)
    return found


def changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """What differs between two versions, in words."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if a != b:
            numbers = a is not None and b is not None and "." in a and "." in b
            lines.append(f"{name} {a} -> {b}" if numbers else f"the code of {name}")
    return lines


def _class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"]
        for value in config.values():
            yield from _class_paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from _class_paths(value)


@functools.cache
def _source_hash(module: str) -> str:
    specification = importlib.util.find_spec(module)
    if specification is None or specification.origin is None:
        return "unknown"
    origin = Path(specification.origin)
    files = sorted(origin.parent.rglob("*.py")) if specification.submodule_search_locations else [origin]
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(origin.parent)).encode())
        digest.update(_essence(file.read_text()).encode())
    return digest.hexdigest()[:12]


def _essence(source: str) -> str:
    """The syntax tree without docstrings and positions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
