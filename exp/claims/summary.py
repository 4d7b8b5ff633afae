"""What all committed results say: the table in docs/claims.md, README's count, and the page of all claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from callbacks.whole_files import whole
from exp.claims.committed import FOLDER, Committed, SummaryError, read_results, reading
from exp.claims.page import FORMER, FORMER_MEANS, count, page
from exp.claims.published import changed_since, freshness
from exp.claims.statistics import Verdict
from exp.markup import visible

BEGIN = "<!-- results: written by `python -m exp compare --summary` -->"
END = "<!-- end of results -->"
TABLE, README, PAGE = Path("docs/claims.md"), Path("README.md"), FOLDER / "index.html"


def summarise() -> list[str]:
    """Rewrites table, count and page of the repository in whose folder it runs, all or none of them.

    Returns:
        What was done, in a line, and what has changed since each result was measured, a line each.

    Raises:
        SummaryError: a page has no marks, or a result cannot be read.
    """
    results = read_results()
    changed = changed_since(results)
    with ExitStack() as stack:
        for path, text in texts(results, changed).items():
            stack.enter_context(whole(path)).write_text(text)
    return [f"{TABLE}, {PAGE} and {README}: {len(results)} results", *freshness(changed)]


def texts(results: Sequence[Committed], changed: Mapping[str, list[str]]) -> dict[Path, str]:
    """What each file is to hold.

    Args:
        results: what has been published.
        changed: what has changed since each of them, by its name.

    Raises:
        SummaryError: a page has no marks, or a result is none of compare's.
    """
    return {
        TABLE: _between_marks(TABLE, _table(results)),
        README: _between_marks(README, [_count(results)]),
        PAGE: page(results, changed),
    }


def _between_marks(path: Path, lines: list[str]) -> str:
    """The text of a page with other lines between its two marks; the rest of it stays."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise SummaryError(f"{path}: no such page; run this in the repository's folder") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SummaryError(f"{path}: what is found goes between the lines '{BEGIN}' and '{END}', each once")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return before + "\n".join([BEGIN, "", *lines, "", END]) + after


def _count(results: Sequence[Committed]) -> str:
    counts = count(results)
    said = [f"{counts[Verdict.HOLDS]} hold", f"{counts[Verdict.DOES_NOT_HOLD]} do not"]
    said.append(f"{counts[Verdict.INCONCLUSIVE]} are inconclusive")
    if counts[Verdict.NONE]:
        said.append(f"{counts[Verdict.NONE]} have no verdict")
    former = sum(committed.former for committed in results)
    rule = f" ({former} of them by the {FORMER}: {FORMER_MEANS})" if former else ""
    return (
        f"Of {len(results)} claims measured so far, {', '.join(said[:-1])} and {said[-1]}{rule}: "
        f"[one page of them all]({PAGE}), to be opened in a browser."
    )


def _table(results: Sequence[Committed]) -> list[str]:
    former = [f"*{FORMER}*: {FORMER_MEANS}.", ""] if any(committed.former for committed in results) else []
    head = ["| claim | verdict | expected | seeds | measured |", "| --- | --- | --- | --- | --- |"]
    return [*former, *head, *map(_row, results)]


def _row(committed: Committed) -> str:
    folder, result, around = committed
    with reading(folder):
        answers = "<br>".join(f"`{_code(a['expect'])}` {Verdict(a['verdict'])}" for a in result["expectations"])
        link = (folder / "report.md").relative_to(TABLE.parent)
        where = ", ".join(_cell(around[name]) for name in ("date", "commit", "machine"))
        verdict = f"**{Verdict(result['verdict'])}**" + (f"<br>*{FORMER}*" if committed.former else "")
        return f"| [{_cell(result['claim'])}]({link}) | {verdict} | {answers} | {len(result['seeds'])} | {where} |"


def _cell(text: Any) -> str:
    """A text as it stands in a cell of the table: no markup of its own.

    Raises:
        ValueError: it is none, or would be more than a cell.
    """
    line = _line(text)
    for sign, written in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("[", "\\["), ("]", "\\]"), ("|", "\\|")):
        line = line.replace(sign, written)
    return line


def _code(text: Any) -> str:
    """A text as it stands in a cell between backticks, where only bars are signs.

    Raises:
        ValueError: it is none, or would end the code.
    """
    line = _line(text)
    if "`" in line:
        raise ValueError(f"{text!r} has a backtick")
    return line.replace("|", "\\|")


def _line(text: Any) -> str:
    if not isinstance(text, str) or len(text.splitlines()) > 1 or "<!--" in text:
        raise ValueError(f"{text!r} is no line of text")
    return visible(text)
