"""What the text of a module says: a hash of what it does, and what it imports, read without running it."""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*\Z")

# A module and an attribute of it; an empty attribute means the module alone, EVERYTHING whatever it offers.
Target = tuple[str, str]
EVERYTHING = "*"
_EMPTY = "Module()"


@dataclass(frozen=True)
class Module:
    """What the text of a module says.

    Args:
        is_package: whether it is the `__init__` of a package.
        digest: hash of its syntax tree without docstrings; of a package, also without the names that it only hands on.
            Empty if nothing is left.
        imports: what its text uses; of a package, what its own statements use.
        offers: the names that a package imports from elsewhere.
        defines: the names that it binds itself.
        words: string constants that could be names.
        patterns: regular expressions of the texts that its f-strings can become.
        logs: whether it has a method `metrics`, or calls a `log` or `log_dict` with a metric's name and value.
    """

    is_package: bool
    digest: str
    imports: frozenset[Target]
    offers: dict[str, Target]
    defines: frozenset[str]
    words: frozenset[str]
    patterns: frozenset[str]
    logs: bool

    def may_log(self, metric: str) -> bool:
        """Whether it logs, and has a text that a metric's name without the split can be."""
        return self.logs and (metric in self.words or any(re.fullmatch(each, metric) for each in self.patterns))


def joined(target: Target, rest: str) -> Target:
    """An attribute of what a target means."""
    module, attribute = target
    return module, ".".join(part for part in (attribute, rest) if part)


def read_module(name: str, path: Path) -> Module:
    """Reads the text of a module.

    Args:
        name: its dotted name.
        path: its file, or the folder of a package (with or without an `__init__.py`).
    """
    is_package = path.is_dir()
    file = path / "__init__.py" if is_package else path
    tree = ast.parse(file.read_text() if file.is_file() else "")
    own = [node for node in tree.body if not (is_package and _hands_on(node))]
    reader = _Reader(name if is_package else name.rpartition(".")[0])
    for node in tree.body:
        if node not in own:
            reader.write(node)
    # Whether `__all__` lists a name does not matter.
    reader.uses, reader.words = {}, set()
    tree.body = own
    essence = reader.write(tree)
    imports: set[Target] = set()
    for binding in reader.bindings:
        if not is_package or binding.name in reader.uses:
            imports.add(binding.target)
        imports |= {joined(binding.root, chain) for chain in reader.uses.get(binding.name, ())}
    return Module(
        is_package=is_package,
        digest=hashlib.sha256(essence.encode()).hexdigest()[:12] if essence != _EMPTY else "",
        imports=frozenset(imports),
        offers={binding.name: binding.offer(name) for binding in reader.bindings} if is_package else {},
        defines=frozenset(reader.defines),
        words=frozenset(reader.words),
        patterns=frozenset(reader.patterns),
        logs=reader.logs,
    )


def _hands_on(node: ast.stmt) -> bool:
    """Whether a statement of a package only makes names of other modules its own, or says its version."""
    is_label = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__")
    return is_label or isinstance(node, (ast.Import, ast.ImportFrom))


@dataclass(frozen=True)
class _Binding:
    """A name that an import statement binds.

    Args:
        name: the name; EVERYTHING for those of a star.
        target: what the statement imports.
        root: what the name means: of `import a.b` it is `a`.
    """

    name: str
    target: Target
    root: Target

    def offer(self, package: str) -> Target:
        """What the name means to those who import it from a package."""
        # `from models import backbones` in the file of `models` itself can only mean a module.
        return (f"{package}.{self.name}", "") if self.root == (package, self.name) else self.root


class _Reader:
    """Writes a syntax tree as text, and notes on the way what it imports, uses and defines.

    Args:
        package: what relative imports begin from.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.bindings: list[_Binding] = []
        # Names -> the attributes that are asked of them, dotted; EVERYTHING where the name stands alone.
        self.uses: dict[str, set[str]] = {}
        self.defines: set[str] = set()
        self.words: set[str] = set()
        self.patterns: set[str] = set()
        self.logs = False
        self._runs = True

    def write(self, node: Any) -> str:
        """A part of the tree as text, without docstrings and positions, and the same in every version of Python."""
        if isinstance(node, list):
            return f"[{','.join(map(self.write, node))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        note = getattr(self, f"_{type(node).__name__.lower()}", None)
        if note is not None and (text := note(node)):
            return text
        fields = [(field, getattr(node, field, None)) for field in node._fields if field not in ("ctx", "kind")]
        values = [f"{field}={self.write(value)}" for field, value in fields if value is not None and value != []]
        return f"{type(node).__name__}({','.join(values)})"

    def _module(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        if not isinstance(node, ast.Module):
            self.defines.add(node.name)
            self.logs |= node.name == "metrics"

    _classdef = _functiondef = _asyncfunctiondef = _module

    def _if(self, node: ast.If) -> str | None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return None
        ran, self._runs = self._runs, False
        body = self.write(node.body)
        self._runs = ran
        return f"If(TYPE_CHECKING,{body},{self.write(node.orelse)})"

    def _import(self, node: ast.Import) -> None:
        for alias in node.names if self._runs else ():
            top = alias.name if alias.asname else alias.name.partition(".")[0]
            self.bindings.append(_Binding(alias.asname or top, (alias.name, ""), (top, "")))

    def _importfrom(self, node: ast.ImportFrom) -> None:
        base = self.package.split(".")[: self.package.count(".") + 2 - node.level] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names if self._runs else ():
            target = (module, alias.name)
            self.bindings.append(_Binding(alias.asname or alias.name, target, target))

    def _attribute(self, node: ast.Attribute) -> str | None:
        chain: list[str] = []
        end: ast.expr = node
        while isinstance(end, ast.Attribute):
            chain.insert(0, end.attr)
            end = end.value
        if not isinstance(end, ast.Name):
            return None
        self.uses.setdefault(end.id, set()).add(".".join(chain))
        return f"Attribute({end.id}.{'.'.join(chain)})"

    def _name(self, node: ast.Name) -> None:
        self.uses.setdefault(node.id, set()).add(EVERYTHING)
        if isinstance(node.ctx, ast.Store):
            self.defines.add(node.id)

    def _constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and NAME.match(node.value):
            self.words.add(node.value)

    def _joinedstr(self, node: ast.JoinedStr) -> None:
        parts = [str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values]
        # Without a letter of its own it could be anything.
        if any(re.search("[a-z]", part) for part in parts):
            self.patterns.add("".join(re.escape(part) if part else ".+" for part in parts))

    def _call(self, node: ast.Call) -> None:
        """Looks for `module.log(name, value)` and `module.log_dict(values)`."""
        if isinstance(node.func, ast.Attribute):
            several = len(node.args) + len(node.keywords) > 1
            self.logs |= node.func.attr == "log_dict" or (node.func.attr == "log" and several)
