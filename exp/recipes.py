"""The configs that come with exp, by name: what there is, and which one a person means."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Beside the package, in a checkout as where it is installed.
FOLDER = Path(__file__).parents[1] / "configs"
CLAIMS, HARDWARE = "claims", "hardware"


class UnknownRecipe(ValueError):
    """No config is called so; the message says which name is near."""


@dataclass(frozen=True)
class Recipe:
    """A config.

    Args:
        path: of the file.
    """

    path: Path

    @property
    def name(self) -> str:
        """What a person calls it: the file's name, or, of those of two tasks, the folder's with it."""
        return self.path.stem

    @property
    def kind(self) -> str:
        """Its folder: the task, `claims` or `hardware`; empty for those that stand alone."""
        return "" if self.path.parent == FOLDER else self.path.parent.name

    @property
    def about(self) -> str:
        """The first sentence of its first lines, which say what it is."""
        lines: list[str] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#") or re.match(r"#\s+python -m exp", line):
                break
            lines.append(line.lstrip("# ").rstrip())
        text = " ".join(lines)
        first = re.match(r".+?\.(?=\s|$)", text)
        return (first[0] if first else text).rstrip(":.")


@cache
def recipes() -> tuple[Recipe, ...]:
    """All configs, by kind and name."""
    return tuple(Recipe(path) for path in sorted(FOLDER.rglob("*.yaml")))


def find_recipe(name: str, claims: bool = False) -> Path:
    """The config that a person means by a name, `solq_digits` or `detection/solq_digits`.

    Args:
        name: without `.yaml`.
        claims: whether a claim is meant.

    Raises:
        UnknownRecipe: there is none.
    """
    known = {}
    for each in recipes():
        if (each.kind == CLAIMS) == claims:
            known[each.name] = each.path
            known[f"{each.kind}/{each.name}"] = each.path
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    kind = "claim" if claims else "config"
    hint = f"did you mean '{near[0]}'?" if near else "`exp configs` lists them"
    raise UnknownRecipe(f"there is no {kind} '{name}', nor such a file; {hint}")


def is_name(word: str) -> bool:
    """Whether a word may be the name of a config: no file of the person's is called so, and it ends like none."""
    return bool(re.fullmatch(r"[\w-]+(/[\w-]+)?", word)) and not os.path.isfile(word)
