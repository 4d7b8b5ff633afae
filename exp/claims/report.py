"""What people read of a result: a table and the verdicts, on the terminal and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drawing.numbers import readable
from exp.claims.remarks import advice, unseen
from exp.claims.statistics import FEWEST_SEEDS, Verdict

STYLES = {
    Verdict.HOLDS: "bold green",
    Verdict.DOES_NOT_HOLD: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.NONE: "bold red",
}
COLUMNS = ("arm", "mean [95 %]", "difference [95 %]", "parameters", "multiply-adds", "train s", "images/s")


def say(console: Console, line: str) -> None:
    """Prints a line as it is, however long."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def rows(result: dict[str, Any], circumstances: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells, in the order of `COLUMNS`."""
    table: list[tuple[str, ...]] = []
    for name, arm in result["arms"].items():
        known = [v for v in arm["values"].values() if v is not None]
        times = circumstances["arms"].get(name, {}).values()
        is_reference = name == result["reference"]
        missing = f" ({len(known)} of {len(result['seeds'])} seeds)" if len(known) < len(result["seeds"]) else ""
        table.append(
            (
                name + missing,
                _estimate(arm),
                "reference" if is_reference else _estimate(arm["difference"], signed=True),
                readable(arm["params"]) if arm["params"] else "",
                readable(arm["macs"]) if arm["macs"] else "",
                _mean([t["seconds"] for t in times]),
                _mean([t["throughput"] for t in times]),
            )
        )
    return table


def print_result(result: dict[str, Any], circumstances: dict[str, Any], folder: Path, console: Console) -> None:
    """Prints table, verdicts and where the files lie."""
    metric = result["metric"] + (f" in {result['unit']}" if result["unit"] else "")
    console.print(f"{result['claim']}  ({metric})", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    for row in rows(result, circumstances):
        table.add_row(*map(escape, row))
    console.print(table, highlight=False)
    console.print()
    for answer in result["expectations"]:
        verdict = Verdict(answer["verdict"])
        console.print(
            f"[{STYLES[verdict]}]{verdict:>13}[/]  {escape(_account(answer))}", highlight=False, soft_wrap=True
        )
        for sentence in sentences(answer, result["unit"]):
            console.print(f"{'':15}{escape(sentence)}", highlight=False, soft_wrap=True, style="dim")
    for sentence in _outcomes(result):
        console.print(escape(sentence), highlight=False, soft_wrap=True)
    for failed in result["failed"]:
        console.print(f"[red]{escape(failed['cell'])}: {escape(failed['reason'])}[/]", highlight=False, soft_wrap=True)
    verdict = Verdict(result["verdict"])
    if len(result["expectations"]) > 1:
        console.print(f"the claim: [{STYLES[verdict]}]{verdict}[/]")
    names = ", ".join(
        sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    )
    console.print(f"{folder}: {names}", highlight=False, soft_wrap=True, markup=False)


def markdown(result: dict[str, Any], circumstances: dict[str, Any], pictures: list[Path]) -> str:
    """`report.md`: everything that the terminal shows, each seed's value, and the pictures."""
    seeds = ", ".join(map(str, result["seeds"]))
    metric = f"`{result['metric']}`" + (f" in {result['unit']}" if result["unit"] else "")
    lines = [
        f"# {result['claim']}",
        "",
        f"**{result['verdict'].capitalize()}**" + (f" ({result['source']})." if result["source"] else "."),
        "",
        *(
            line
            for answer in result["expectations"]
            for line in (
                f"- **{answer['verdict']}**: {_account(answer, code=True)}",
                *(f"    - {sentence}" for sentence in sentences(answer, result["unit"])),
            )
        ),
        *(f"- {failed['cell']}: {failed['reason']}" for failed in result["failed"]),
        "",
        f"{metric}, seeds {seeds}; it was looked at {_looks(result)}. The intervals of the verdicts allow for all "
        "looks, those of the table are paired Student-t at 95 %. Multiply-adds are those that an inference executed, "
        "for one image; train seconds are those of training steps.",
        "",
        *(line for sentence in _outcomes(result) for line in (sentence, "")),
        *_table([COLUMNS, *rows(result, circumstances)]),
        "",
        "Each seed:",
        "",
        *_table([("arm", *map(str, result["seeds"])), *_values(result)]),
        "",
    ]
    if result["notes"]:
        lines += [result["notes"], ""]
    lines += [line for picture in pictures for line in (f"![{picture.stem.replace('_', ' ')}]({picture.name})", "")]
    changed = "".join(f" {override}" for override in result["overrides"])
    lines += [
        f"    python -m exp compare --config {result['file']}{changed}",
        "",
        f"{circumstances['date']}, commit {circumstances['commit'] or 'unknown'}, {circumstances['machine']}, "
        f"torch {circumstances['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def sentences(answer: dict[str, Any], unit: str) -> list[str]:
    """What is to be known of an expectation's verdict, and what would settle an open one."""
    settle = answer["would_settle"]
    if not settle:
        return list(answer["remarks"])
    return [*answer["remarks"], advice(settle, f"{settle['difference']:#.2g}{' ' + unit if unit else ''}")]


def _looks(result: dict[str, Any]) -> str:
    counts = [str(count) for count in result["looks"]]
    if not counts:
        return "never, for no arm is complete"
    return f"after {' and '.join([', '.join(counts[:-1]), counts[-1]] if len(counts) > 1 else counts)} of them"


def _outcomes(result: dict[str, Any]) -> list[str]:
    """Runs that fell apart, or how many may do so unseen."""
    said = []
    for name, arm in result["arms"].items():
        for how, seeds in (("diverged", arm["diverged"]), ("fell far behind the others", arm["apart"])):
            if seeds:
                said.append(f"Of {name}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} {how}.")
    count = len(result["seeds"])
    if not said and count >= FEWEST_SEEDS:
        share = f"{100 * unseen(count):.0f} %"
        said.append(f"No run diverged; of {count} seeds that is likely as long as fewer than {share} do.")
    return said


def _account(answer: dict[str, Any], code: bool = False) -> str:
    """The expectation, what was found, and why there is no verdict if there is none."""
    text = f"`{answer['expect']}`" if code else answer["expect"]
    if (found := answer.get("difference")) and found["mean"] is not None:
        what = "between the bars" if "|" in answer["expect"] else "left - right"
        text += f"  ({what} {_estimate(found, signed=True)})"
    return text + (f": {answer['reason']}" if answer["reason"] else "")


def _table(cells: list[tuple[str, ...]]) -> list[str]:
    head, *body = cells
    return [f"| {' | '.join(row)} |" for row in [head, tuple("---" for _ in head), *body]]


def _values(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (name, *(_number(arm["values"][str(seed)]) for seed in result["seeds"])) for name, arm in result["arms"].items()
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:#.4g}"


def _estimate(found: dict[str, Any], signed: bool = False) -> str:
    """`mean [low, high]`."""
    form = "+#.3g" if signed else "#.4g"
    if found["mean"] is None:
        return ""
    interval = f" [{found['interval'][0]:{form}}, {found['interval'][1]:{form}}]" if found["interval"] else ""
    return f"{found['mean']:{form}}{interval}"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.0f}" if known else ""
