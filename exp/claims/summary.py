"""The table of all committed results in docs/claims.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from callbacks.whole_files import write_whole

BEGIN = "<!-- results: written by `python -m exp compare --summary` -->"
END = "<!-- end of results -->"


class SummaryError(RuntimeError):
    """The table cannot be written; the message names the file and the remedy."""


def summarise(page: Path, folder: Path) -> str:
    """Rewrites the table between two marks of a page; the rest of it stays.

    Args:
        page: the page, which has both marks.
        folder: `<claim>/results.json` and `circumstances.json` below it.

    Returns:
        What was done, in a line.

    Raises:
        SummaryError: the page has no marks, or a result cannot be read.
    """
    try:
        text = page.read_text()
    except FileNotFoundError:
        raise SummaryError(f"{page}: no such page; run this in the repository's folder") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SummaryError(f"{page}: the table goes between the lines '{BEGIN}' and '{END}', each once")
    files = sorted(folder.glob("*/results.json"))
    lines = [_row(file, page) for file in files]
    table = ["| claim | verdict | expected | seeds | measured |", "| --- | --- | --- | --- | --- |", *lines]
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    write_whole(page, before + "\n".join([BEGIN, "", *table, "", END]) + after)
    return f"{page}: {len(files)} results"


def _row(file: Path, page: Path) -> str:
    try:
        result = json.loads(file.read_bytes())
        around = json.loads(file.with_name("circumstances.json").read_bytes())
        answers = "<br>".join(f"`{_cell(a['expect'])}` {_cell(a['verdict'])}" for a in result["expectations"])
        link = file.with_name("report.md").relative_to(page.parent)
        where = ", ".join(_cell(around[name]) for name in ("date", "commit", "machine"))
        claim, verdict = _cell(result["claim"]), _cell(result["verdict"])
        return f"| [{claim}]({link}) | **{verdict}** | {answers} | {len(result['seeds'])} | {where} |"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SummaryError(
            f"{file.parent}: not a result of compare ({error!r}); run its claim with --publish"
        ) from error


def _cell(text: Any) -> str:
    """A text as it stands in a cell of the table.

    Raises:
        ValueError: it is none, or would be more than a cell.
    """
    if not isinstance(text, str) or "\n" in text or "<!--" in text:
        raise ValueError(f"{text!r} is no line of text")
    return text.replace("|", "\\|")
