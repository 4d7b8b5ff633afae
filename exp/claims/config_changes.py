"""What turns one config into another, as `key: value` of the command line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exp.claims.cells import OWN_KEYS
from exp.claims.claim_file import written
from exp.cli import resolve
from exp.usage import ConfigError

Place = tuple[str, ...]
_NOTHING = object()


def changes_between(file: Path, base: Any, config: Any, said: Any) -> dict[str, Any] | None:
    """The changes of one config that make it another: as that one's file says it where this will do, else spelled out.

    Args:
        file: the config that is changed.
        base: what it resolves to.
        config: what the other one resolves to.
        said: what the other one's file says.

    Returns:
        Dotted config key -> value, without what `compare` sets for every cell; None if no such changes are found.
    """
    changes = {_dotted(place, config): value for place, value in _differences(base, config, said)}
    for _ in range(3):
        try:
            now = resolve([f"--config={file}", *as_arguments(changes)])
        except ConfigError:
            # What the file says is short for something that a command line has to spell out.
            changes = {_dotted(place, config): value for place, value in _differences(base, config, _NOTHING)}
            continue
        left = list(_differences(now, config, _NOTHING))
        if not left:
            return changes
        for place, value in left:
            key = _dotted(place, config)
            # A text that YAML would take for something else goes between quotes.
            quoted = isinstance(value, str) and changes.get(key) == value
            _put(changes, key, place, json.dumps(value) if quoted else value)
    return None


def as_arguments(changes: Mapping[str, Any]) -> list[str]:
    """Changes as the command line takes them."""
    return [f"--{key}={written(value)}" for key, value in changes.items()]


def _differences(base: Any, other: Any, said: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The parts in which two resolved configs differ, as small as a key can name, and what the other has there."""
    for name in other:
        if not place and name in OWN_KEYS:
            continue
        before, after = base.get(name), other[name]
        # Where text will do, too, the command line takes a number for text.
        if before == after or (isinstance(before, str) and before == str(after)):
            continue
        word = said.get(name, _NOTHING) if isinstance(said, dict) else _NOTHING
        here = (*place, name)
        if isinstance(before, dict) and isinstance(after, dict) and _alike(before, after):
            yield from _differences(before, after, word, here)
        else:
            yield here, copy.deepcopy(after if word is _NOTHING else word)


def _alike(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether mappings are of one class and have the same keys, so that a dotted key changes one value of them."""
    same = before.keys() == after.keys() and before.get("class_path") == after.get("class_path")
    return same and all(isinstance(key, str) and key.isidentifier() for key in before)


def _dotted(place: Place, config: Any) -> str:
    """A key of the command line, which leaves out the `init_args` of classes."""
    words = []
    for name in place:
        if not (name == "init_args" and "class_path" in config):
            words.append(name)
        config = config[name]
    return ".".join(words)


def _put(changes: dict[str, Any], key: str, place: Place, value: Any) -> None:
    """Adds a change: within one that holds its place, else on its own."""
    for taken, content in changes.items():
        if key.startswith(f"{taken}.") and isinstance(content, dict):
            rest = _below(place, taken)
            for name in rest[:-1]:
                content = content.setdefault(name, {})
            content[rest[-1]] = value
            return
    changes[key] = value


def _below(place: Place, key: str) -> Place:
    """What of a place is left below a dotted key, which skips the `init_args` of classes."""
    for word in key.split("."):
        place = place[place.index(word) + 1 :]
    return place
