"""The modules that a module runs with: its imports and theirs, read from the sources without running them."""

from __future__ import annotations

import functools
import importlib.util
import site
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

from exp.claims.module_text import EVERYTHING, NAME, Module, Target, joined, read_module

# Sources wherever they are installed; what else lies outside of the folders of libraries is the user's own.
OURS = ("callbacks", "datamodules", "drawing", "exp", "lightning_modules", "models")
LIBRARIES = {"site-packages", "dist-packages"}
# Where a command goes through all tasks, it lists what there is; a run has what its config names.
COMMANDS = "exp"
# What only watches a run cannot change what it computes, so neither its text nor its imports count ...
DRAWINGS = "drawing"
# ... but of a report whose metrics are asked for, both do.
REPORTS = "callbacks.reports"


def find_sources(name: str) -> Path | None:
    """The folder or file of a top-level module that belongs to exp or to the user; None for a library."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if found is None:
        return None
    places = list(found.submodule_search_locations or ())
    if found.origin is not None and found.has_location and not places:
        places = [found.origin]
    if not places:
        return None
    path = Path(places[0])
    # An environment on top of another one has libraries in both.
    below = not LIBRARIES.isdisjoint(path.parts)
    is_library = below or any(path.is_relative_to(folder) for folder in _library_folders())
    return path if name in OURS or not is_library else None


@functools.cache
def _library_folders() -> list[str]:
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*folders, site.getusersitepackages()]


class Sources:
    """The modules that can be imported, each read once.

    Args:
        find: top-level name -> its folder or file, None if it is a library.
        registered: string -> the module that registers a network of this name with timm, None if there is none. Such a
            string in a module counts as an import.
    """

    def __init__(
        self,
        find: Callable[[str], Path | None] = find_sources,
        registered: Callable[[str], str | None] = lambda name: None,
    ) -> None:
        self.find = functools.cache(find)
        self.registered = functools.cache(registered)
        self._path = functools.cache(self._look_for)
        self._modules: dict[str, Module] = {}
        self._needs: dict[str, frozenset[str]] = {}

    def has(self, name: str) -> bool:
        """Whether a name is that of a module."""
        return self._path(name) is not None

    def module(self, name: str) -> Module:
        """What a module's text says."""
        if name not in self._modules:
            path = self._path(name)
            assert path is not None, name
            self._modules[name] = read_module(name, path)
        return self._modules[name]

    def digests(self, targets: Iterable[Target]) -> dict[str, str]:
        """The static import closure of modules and of names in them.

        A name that a package imports from elsewhere leads to the module that defines it, past everything else that
        the package imports. Imports within functions count; those under `if TYPE_CHECKING` and dynamic ones do not.

        Args:
            targets: where to begin. What is no source is passed over.

        Returns:
            Module -> hash of its text without comments and docstrings, in alphabetical order.
        """
        found: set[str] = set()
        waiting = [name for target in targets for name in self.owners(*target)]
        while waiting:
            name = waiting.pop()
            if name not in found and not _within(name, DRAWINGS):
                found.add(name)
                waiting += self._needed(name)
        return {name: digest for name in sorted(found) if (digest := self.module(name).digest)}

    def is_report(self, target: Target) -> bool:
        """Whether a name in a source is that of a report."""
        return any(_within(name, REPORTS) for name in self.owners(*target))

    def reports_that_log(self, metrics: Iterable[str]) -> set[str]:
        """The modules of reports that may log one of some metrics, and of reports that are made of these.

        Args:
            metrics: names without the split, such as `top1_at_50`.
        """
        folder = self._path(REPORTS)
        files = folder.glob("*.py") if folder and folder.is_dir() else []
        reports = {f"{REPORTS}.{file.stem}" for file in files if file.stem != "__init__"}
        found = {name for name in reports for metric in metrics if self.module(name).may_log(metric)}
        while more := {name for name in reports - found if found & self._needed(name)}:
            found |= more
        return found

    def target(self, path: str) -> Target | None:
        """What a dotted path such as `models.segmenters.ADPC` means; None if it is no name in a source."""
        module, attributes = path, ""
        while "." in module and NAME.match(path):
            module, _, attribute = module.rpartition(".")
            attributes = f"{attribute}.{attributes}".rstrip(".")
            if self.has(module):
                return module, attributes
        return None

    def owners(self, name: str, attribute: str = "", behind: frozenset[Target] = frozenset()) -> set[str]:
        """The modules whose text decides what an import gives.

        Args:
            name: the module imported from.
            attribute: the name imported, perhaps dotted.
            behind: the packages that handed the name on.
        """
        if not self.has(name) or (name, attribute) in behind:
            return set()
        module, behind = self.module(name), behind | {(name, attribute)}
        if not attribute or not module.is_package:
            return {name}
        first, _, rest = attribute.partition(".")
        if first in module.offers:
            return {name} | self.owners(*joined(module.offers[first], rest), behind)
        if first in module.defines:
            return {name}
        if self.has(f"{name}.{first}"):
            return {name} | self.owners(f"{name}.{first}", rest, behind)
        # All of it, or a name that no statement binds: whatever it imports may be meant.
        offered = module.offers.values()
        return {name}.union(*(self.owners(*joined(target, EVERYTHING), behind) for target in offered))

    def _needed(self, name: str) -> frozenset[str]:
        """What a module brings with it."""
        if name not in self._needs:
            module = self.module(name)
            homes = filter(None, map(self.registered, module.words))
            targets = [*module.imports, *((home, "") for home in homes)]
            if _within(name, COMMANDS):
                targets = [(package, attribute.removesuffix(EVERYTHING)) for package, attribute in targets]
            # Whoever imports a module runs the packages around it first.
            around = {name.rpartition(".")[0]} - {""}
            self._needs[name] = frozenset(around.union(*(self.owners(*target) for target in targets)))
        return self._needs[name]

    def _look_for(self, name: str) -> Path | None:
        top, *rest = name.split(".")
        path = self.find(top)
        if path is None or (rest and path.suffix == ".py"):
            return None
        path = path.joinpath(*rest)
        file = path.with_name(f"{path.name.removesuffix('.py')}.py")
        if file.is_file() and not (path / "__init__.py").is_file():
            return file
        return path if path.is_dir() else None


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")
