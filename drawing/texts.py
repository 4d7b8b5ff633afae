"""Names of files and classes in pictures: any text, as it is, in letters that a font has, and not too long."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

# What is tried for letters that matplotlib's own font lacks, where it is installed.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Source Han Sans SC"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Unifont"),
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji"),
)
_MISSING = re.compile(r"Glyph \d+ \(.*\) missing from")


@contextmanager
def plain_texts(figure: Figure) -> Iterator[None]:
    """Draws a figure with its texts as they are: a `$` begins no formula, and another font lends what one lacks.

    Args:
        figure: is drawn inside.
    """
    families = ["sans-serif", *_installed()]
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)
            if len(families) > 1:
                text.set_fontfamily(families)
    with (
        warnings.catch_warnings(record=True) as caught,
        matplotlib.rc_context({"text.parse_math": False, "font.family": families}),
    ):
        warnings.simplefilter("always")
        yield
    for each in caught:
        if _MISSING.match(str(each.message)):
            _tell_of_letters()
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def short(text: str, most: int) -> str:
    """Each line of a text with at most so many letters; of a longer one, the middle is left out."""
    return "\n".join(
        line if len(line) <= most else f"{line[: (most - 1) // 2]}…{line[-(most // 2) :]}" for line in text.split("\n")
    )


@cache
def _installed() -> list[str]:
    there = {font.name for font in fontManager.ttflist}
    return [name for name in FALLBACKS if name in there]


@cache
def _tell_of_letters() -> None:
    warnings.warn(
        "Names in pictures have letters that no installed font has: boxes stand for them. Install a font with them, "
        "such as Noto Sans CJK.",
        stacklevel=2,
    )
