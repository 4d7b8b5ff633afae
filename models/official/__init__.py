"""Official checkpoint layouts and ours: one engine (`layout`), and one file a system with its table, `LAYOUT`.

A key that has no place in a layout, or one that is missing from it, is a `LayoutError` that names it: nothing is
dropped in silence.
"""

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from torch import Tensor

from models.official.layout import Layout, LayoutError, State, some, unwrap
from models.official.loading import absent_parts, load, spare_parts


def systems() -> list[str]:
    """Names of the systems whose official layouts are known."""
    files = sorted(file.name for file in pkgutil.iter_modules(__path__))
    return [name for name in files if hasattr(import_module(f"{__name__}.{name}"), "LAYOUT")]


def layout_of(system: str) -> Layout:
    """The layout of a system.

    Raises:
        LayoutError: No such system.
    """
    if system not in systems():
        raise LayoutError(f"unknown system {system!r}; known: {', '.join(systems())}")
    layout: Layout = import_module(f"{__name__}.{system}").LAYOUT
    return layout


def system_of(state: Mapping[str, Tensor], to: str = "ours") -> str:
    """The system that weights belong to, by their key names.

    Args:
        state: Weights, in an official layout when `to` is `ours`, in ours when it is `official`.
        to: Where they are to be converted to.

    Raises:
        LayoutError: No system knows these keys, or several do.
    """
    recognise = Layout.matches if to == "ours" else Layout.matches_ours
    found = [system for system in systems() if recognise(layout_of(system), state)]
    if len(found) != 1:
        which = f"more than one system ({', '.join(found)})" if found else f"none of the systems {', '.join(systems())}"
        source = "official" if to == "ours" else "our"
        raise LayoutError(f"the keys ({some(state)}) fit the {source} layout of {which}")
    return found[0]


def foreign(state: Mapping[str, Tensor]) -> bool:
    """Whether weights are in some system's official layout, to be translated before they are loaded."""
    return any(layout_of(system).matches(state) for system in systems())


__all__ = [
    "Layout",
    "LayoutError",
    "State",
    "absent_parts",
    "foreign",
    "layout_of",
    "load",
    "some",
    "spare_parts",
    "system_of",
    "systems",
    "unwrap",
]
