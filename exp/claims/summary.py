"""The table of all committed results in docs/claims.md."""

from __future__ import annotations

import json
from pathlib import Path

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
        result = json.loads(file.read_text())
        around = json.loads(file.with_name("circumstances.json").read_text())
        answers = "<br>".join(f"`{a['expect']}` {a['verdict']}".replace("|", "\\|") for a in result["expectations"])
        link = file.with_name("report.md").relative_to(page.parent)
        where = f"{around['date']}, {around['commit']}, {around['machine']}"
        return (
            f"| [{result['claim']}]({link}) | **{result['verdict']}** | {answers} | {len(result['seeds'])} | {where} |"
        )
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise SummaryError(
            f"{file.parent}: not a result of compare ({error!r}); run its claim with --publish"
        ) from error
