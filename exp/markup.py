"""HTML in which every text is text: what has not been built here is escaped."""

from __future__ import annotations

import html
import re

EMPTY = ("br", "circle", "img", "input", "line", "link", "meta", "path", "rect")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Markup(str):
    """HTML that is whole: elements and escaped text."""

    __slots__ = ()


def text(content: str) -> Markup:
    """A text as HTML shows it.

    Raises:
        ValueError: it is none.
    """
    if isinstance(content, Markup):
        return content
    if not isinstance(content, str):
        raise ValueError(f"{content!r} is no text")
    return Markup(html.escape(visible(content)))


def visible(content: str) -> str:
    """A text without signs that a terminal or a browser would obey."""
    return _CONTROL.sub("\ufffd", content)


def element(tag: str, *children: str, **attributes: str | float | bool) -> Markup:
    """An element.

    Args:
        tag: its name.
        children: its content, one after the other; `Markup` stays as it is, all else is escaped.
        attributes: an underscore stands for a hyphen, or is left out at the end (`class_`); True is a name alone, and
            False is left out. Numbers have at most one decimal.
    """
    written = "".join(_attribute(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    if tag in EMPTY:
        return (
            Markup(f"<{tag}{written}>")
            if tag in ("br", "img", "input", "link", "meta")
            else Markup(f"<{tag}{written}/>")
        )
    return Markup(f"<{tag}{written}>{joined(*children)}</{tag}>")


def joined(*parts: str) -> Markup:
    """Parts one after the other."""
    return Markup("".join(map(text, parts)))


def _attribute(name: str, value: str | float | bool) -> str:
    if isinstance(value, bool):
        return f" {name}" if value else ""
    return f' {name}="{text(value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0"))}"'
