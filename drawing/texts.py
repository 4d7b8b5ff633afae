"""Names of files and classes in pictures: any text, as it is, in letters that a font has, and not too long."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, Formatter, FuncFormatter, LogFormatterMathtext

# What is tried for letters that matplotlib's own font lacks, where it is installed.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Source Han Sans SC"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Unifont"),
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji"),
)


@contextmanager
def plain_texts(figure: Figure) -> Iterator[None]:
    """Draws a figure with its texts as they are: a `$` begins no formula, and another font lends what one lacks.

    Letters that no installed font has are spelled as their numbers, `\\u4e2d`.

    Args:
        figure: is drawn inside.
    """
    families = ["sans-serif", *_installed()]
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)
            text.set_text(spelled(text.get_text()))
            if len(families) > 1:
                text.set_fontfamily(families)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), FuncFormatter | FixedFormatter):
                axis.set_major_formatter(_Spelled(axis.get_major_formatter()))
            # Powers are formulas, which would be seen as they are written.
            if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                axis.set_major_formatter(_Plain(axis.get_major_formatter()))
            if isinstance(axis.get_minor_formatter(), LogFormatterMathtext):
                axis.set_minor_formatter(_Plain(axis.get_minor_formatter()))
    with matplotlib.rc_context({"text.parse_math": False, "font.family": families}):
        yield


def spelled(text: str) -> str:
    """A text with the numbers of those letters that no installed font has."""
    known = _letters()
    missing = {letter for letter in text if ord(letter) not in known and letter != "\n"}
    if not missing:
        return text
    _tell_of_letters()
    return "".join(_number(letter) if letter in missing else letter for letter in text)


def _number(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 1 << 16 else f"\\U{ord(letter):08x}"


class _Spelled(Formatter):
    """The names at the ticks of an axis, spelled."""

    def __init__(self, names: Formatter) -> None:
        self._names = names

    def __call__(self, x: float, pos: int | None = None) -> str:
        return spelled(self._names(x, pos))

    def format_ticks(self, values: list[float]) -> list[str]:
        return [spelled(text) for text in self._names.format_ticks(values)]


class _Plain(Formatter):
    """The numbers at those ticks of a logarithmic axis that have one."""

    def __init__(self, powers: Formatter) -> None:
        self._powers = powers

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if self._powers(x, pos) else ""

    def format_ticks(self, values: list[float]) -> list[str]:
        texts = self._powers.format_ticks(values)
        return [f"{value:g}" if text else "" for value, text in zip(values, texts, strict=True)]


@cache
def _letters() -> frozenset[int]:
    """The letters that matplotlib's font and the fallbacks have."""
    fonts = [findfont(FontProperties(family=[name])) for name in ("sans-serif", *_installed())]
    return frozenset(letter for font in fonts for letter in get_font(font).get_charmap())


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
        "Names in pictures have letters that no installed font has: their numbers stand for them. Install a font with "
        "them, such as Noto Sans CJK.",
        stacklevel=2,
    )
