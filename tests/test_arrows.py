"""The rooms of the house, and the arrows between them, as CONTRIBUTING.md draws them: read off the imports."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EVERYTHING = {"models", "drawing", "datamodules", "lightning_modules", "callbacks", "exp"}
# What the modules of a room may import of other rooms.
ARROWS: dict[str, set[str]] = {
    "models": set(),
    "drawing": set(),
    "datamodules": set(),
    "lightning_modules": {"models"},
    "callbacks": {"models", "drawing", "lightning_modules"},
    "exp": EVERYTHING,
    "benchmarks": EVERYTHING,
}
# Names that say nothing about what is in a room.
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}
MOST_LINES = 400


@cache
def modules() -> dict[str, ast.Module]:
    """Our modules by dotted name."""
    found = {}
    for room in ARROWS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imports(tree: ast.AST, everywhere: bool = True) -> Iterator[str]:
    """Dotted names that a module imports, with the names that are taken from modules.

    Args:
        tree: Of the module.
        everywhere: Whether imports inside functions and for type checkers count, too.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif everywhere or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            yield from imports(node, everywhere)


def module_of(name: str) -> str | None:
    """Our module that a dotted name is of: the longest part of it that is one."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_point_down(room: str) -> None:
    wrong = {
        f"{name} -> {imported}"
        for name, tree in modules().items()
        for imported in imports(tree)
        if name.split(".")[0] == room
        and (other := imported.split(".")[0]) in ARROWS
        and other not in ARROWS[room] | {room}
    }
    assert not wrong


def test_pictures_are_drawn_with_numpy_and_matplotlib_alone() -> None:
    allowed = {"numpy", "matplotlib", "drawing", *sys.stdlib_module_names}
    used = {
        imported.split(".")[0]
        for name, tree in modules().items()
        for imported in imports(tree)
        if name.split(".")[0] == "drawing"
    }
    assert used <= allowed


def test_networks_know_no_lightning_and_no_files() -> None:
    wrong = {
        f"{name} -> {imported}"
        for name, tree in modules().items()
        for imported in imports(tree)
        if name.split(".")[0] == "models" and imported.split(".")[0] in {"lightning", "torchmetrics", "pathlib"}
    }
    assert not wrong


def test_there_are_no_circles() -> None:
    arrows = {
        name: {other for each in imports(tree, everywhere=False) if (other := module_of(each)) and other != name}
        for name, tree in modules().items()
    }
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(arrows[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in arrows:
        walk(name, [])


def exported(package: str) -> set[str]:
    """What a package's `__all__` names."""
    for node in modules()[package].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_the_command_line_knows_no_task_network_or_report() -> None:
    bases = {"Task", "Report", "Predictions"}
    on_a_base = {
        node.name
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and bases & {ast.unparse(base) for base in node.bases}
    }
    rooms = ("classifiers", "detectors", "segmenters", "pose", "vqa")
    networks = {name for room in rooms for name in exported(f"models.{room}")}
    known = (on_a_base | networks) - {"Predictions", "Cost"}
    assert {"Classification", "Detection", "Segmentation", "PoseEstimation", "ExitCurve", "SOLQ"} <= known
    words = {
        (name, node.id if isinstance(node, ast.Name) else node.attr)
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if name.split(".")[0] == "exp" and isinstance(node, ast.Name | ast.Attribute)
    }
    assert not {f"{name}: {word}" for name, word in words if word in known}


def test_evaluations_live_in_two_places() -> None:
    """Nobody else writes the life of an evaluation by hand; what acts on a run may look in at its ends."""
    mine = {"lightning_modules.task", "callbacks.reports.report"}
    ends = {
        "callbacks.checkpoints": {"on_validation_end"},
        "callbacks.preemption": {"on_validation_batch_end"},
        "exp.progress": {"on_validation_batch_end", "on_test_batch_end"},
    }
    wrong = {
        f"{name}.{node.name}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith(("on_validation_", "on_test_", "on_predict_"))
        and name not in mine
        and node.name not in ends.get(name, set())
    }
    assert not wrong


def test_every_room_has_one_idea() -> None:
    paths = [path for room in ARROWS for path in (ROOT / room).rglob("*.py")]
    assert not [path.name for path in paths if path.stem in NAMELESS]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert not {path: count for path, count in lines.items() if count > MOST_LINES}


def test_tests_help_themselves_from_the_library() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        wrong = [name for name in imports(ast.parse(path.read_text())) if re.search(r"^tests\..*\btest_", name)]
        assert not wrong, path
