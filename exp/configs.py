"""`python -m exp configs`: the configs that there are, with what each is."""

from __future__ import annotations

import argparse
import sys

from exp.recipes import Recipe, recipes


def main(argv: list[str]) -> int:
    """Lists the configs in whose names, kinds or descriptions all of some words are.

    Args:
        argv: arguments after `configs`.

    Returns:
        The exit code: 1 if there is none.
    """
    parser = argparse.ArgumentParser(
        prog="python -m exp configs",
        description="List the configs that come with exp: `exp fit NAME` trains one, `exp compare NAME` runs a claim.",
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="only those with all of these words, such as: digits")
    words = [word.lower() for word in parser.parse_args(argv).words]
    found = [each for each in recipes() if all(word in _text(each) for word in words)]
    if not found:
        print(f"exp: no config has {' and '.join(words)} in its name or description", file=sys.stderr)
        return 1
    show(found)
    return 0


def show(found: list[Recipe]) -> None:
    """Prints configs, those of a kind together."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(emoji=False)
    for kind in dict.fromkeys(each.kind for each in found):
        table = Table(title=kind or "to begin with", title_justify="left", box=None, show_header=False, pad_edge=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for each in found:
            if each.kind == kind:
                table.add_row(escape(each.name), escape(each.about))
        console.print(table, highlight=False)
        console.print()


def _text(recipe: Recipe) -> str:
    return f"{recipe.kind} {recipe.name} {recipe.about}".lower()
