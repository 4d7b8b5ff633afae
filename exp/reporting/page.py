"""Runs on one page: curves over each other, costs, what their configs differ in, pictures, environment."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from exp.markup import Markup, element, joined
from exp.page_frame import document
from exp.reporting.charts import Line, curves, points
from exp.reporting.frame import SCRIPT, STYLE
from exp.reporting.gather import Gathered, gather

# Most bytes of pictures on a page; the rest are named.
PICTURES = 24_000_000
# Letters of a value in a table.
LONGEST = 160
# What a validation and a training log under one name is drawn in one panel.
SPLITS = ("val", "train")
# Panels that are open from the beginning.
OPEN = 6


def write_report(paths: Sequence[Path], runs: Path, target: Path) -> None:
    """Writes a page of some runs.

    Args:
        paths: their directories.
        runs: the folder of all runs.
        target: the file.

    Raises:
        OSError: it cannot be written.
    """
    # It takes matplotlib along, which a page has no use for.
    from callbacks.whole_files import write_whole

    write_whole(target, page([gather(path, runs) for path in paths]))


def page(runs: Sequence[Gathered]) -> str:
    """The page.

    Args:
        runs: those on it, in their order.
    """
    title = runs[0].run.name if len(runs) == 1 else f"{len(runs)} runs"
    head = joined(
        element("h1", title),
        element(
            "p", f"Written on {time.strftime('%Y-%m-%d %H:%M')}. What is faint was logged in training.", class_="quiet"
        ),
    )
    sections = [
        _legend(runs),
        _section("Results and costs", _results(runs)),
        _section("Accuracy over compute", *_trade(runs)),
        _section("Curves", *_curves(runs)),
        _section("What the configs differ in" if len(runs) > 1 else "Config", *_configs(runs)),
        _section("Pictures", *_pictures(runs)),
        _section("Environment", _environment(runs)),
    ]
    return document(f"{title} · exp", head, joined(*sections), STYLE, SCRIPT) + "\n"


def _section(title: str, *content: Markup) -> Markup:
    kept = [each for each in content if each]
    return element("section", element("h2", title), *kept) if kept else Markup("")


def _legend(runs: Sequence[Gathered]) -> Markup:
    buttons = (
        element(
            "button",
            each.run.name,
            type="button",
            class_=f"r{i % 20}",
            data_run=str(i),
            aria_pressed="true",
            title="show or hide it",
            disabled=True,
        )
        for i, each in enumerate(runs)
    )
    return element("div", *buttons, class_="runs")


def _results(runs: Sequence[Gathered]) -> Markup:
    tests = list(dict.fromkeys(name for each in runs for name in each.run.tests))
    rows = []
    for i, each in enumerate(runs):
        run = each.run
        name, state, best, _, params, macs, lasted, when = run.cells()
        cells = [
            element("td", name, class_=f"run r{i % 20}"),
            element("td", state),
            _figure(best, run.best),
            *(_figure("" if (value := run.tests.get(test)) is None else f"{value:#.4g}", value) for test in tests),
            _figure(params, run.params),
            _figure(macs, run.macs),
            _figure(lasted, run.seconds),
            element("td", when),
        ]
        rows.append(element("tr", *cells, data_run=str(i)))
    names = ["run", "state", "best", *tests, "parameters", "multiply-adds", "time", "begun"]
    numbers = set(names) - {"run", "state", "begun"}
    head = (element("th", name, scope="col", class_="number" if name in numbers else "") for name in names)
    return _wide(
        element("table", element("thead", element("tr", *head)), element("tbody", *rows), class_="sortable"), "results"
    )


def _figure(shown: str, value: float | None) -> Markup:
    return element("td", shown, class_="number", data_value="" if value is None else f"{value:.9g}")


def _trade(runs: Sequence[Gathered]) -> Iterator[Markup]:
    """How good runs are over what they cost, of each metric that some of them have in common."""
    panels = []
    for monitor in dict.fromkeys(each.run.monitor for each in runs):
        for axis, cost in (("multiply-adds an image, executed", "macs"), ("parameters", "params")):
            found = [
                (i, each.run.name, x, y)
                for i, each in enumerate(runs)
                if each.run.monitor == monitor
                and (x := getattr(each.run, cost)) is not None
                and (y := each.run.best) is not None
            ]
            if len(found) > 1:
                panels.append(points(f"best {monitor}", axis, found))
    if panels:
        yield element("div", *panels, class_="panels")


def _curves(runs: Sequence[Gathered]) -> Iterator[Markup]:
    panels: dict[str, list[Line]] = {}
    for i, each in enumerate(runs):
        for metric, (steps, values) in each.series.items():
            split, _, name = metric.partition("/")
            shared = split in SPLITS
            told = f"{each.run.name} {split}" if shared and split == "train" else each.run.name
            line = Line(i, told, steps, values, shared and split == "train")
            panels.setdefault(name if shared else metric, []).append(line)
    watched = {each.run.monitor.partition("/")[2] for each in runs}

    def order(name: str) -> tuple[bool, bool, bool]:
        return name not in watched, name != "loss", all(line.faint for line in panels[name])

    # What was tested once is a number in a table.
    names = sorted((name for name in panels if not name.startswith("test/")), key=order)
    drawn = [curves(name, panels[name]) for name in names]
    if drawn:
        yield element("div", *drawn[:OPEN], class_="panels")
    if len(drawn) > OPEN:
        more = element("div", *drawn[OPEN:], class_="panels")
        yield element("details", element("summary", f"{len(drawn) - OPEN} more"), more)


def _configs(runs: Sequence[Gathered]) -> Iterator[Markup]:
    keys = list(dict.fromkeys(key for each in runs for key in each.config))
    told = [[each.config.get(key, "") for each in runs] for key in keys]
    differ = [(key, values) for key, values in zip(keys, told, strict=True) if len(set(values)) > 1]
    same = [(key, values[0]) for key, values in zip(keys, told, strict=True) if len(set(values)) == 1]
    if differ:
        yield _by_run(runs, differ, "what the configs differ in")
    elif len(runs) > 1 and keys:
        yield element("p", "Nothing that decides what is computed.")
    if same:
        entries = [joined(element("dt", key), element("dd", _short(value))) for key, value in same]
        title = f"All {len(same)} values" if len(runs) == 1 else f"{len(same)} values are the same in all"
        yield element("details", element("summary", title), element("dl", *entries, class_="config"))


def _by_run(runs: Sequence[Gathered], rows: Sequence[tuple[str, Sequence[str]]], label: str) -> Markup:
    """A table with a column for each run."""
    head = element(
        "tr",
        element("td"),
        *(element("td", each.run.name, class_=f"run r{i % 20}", data_run=str(i)) for i, each in enumerate(runs)),
    )
    body = [
        element(
            "tr",
            element("th", key, scope="row"),
            *(element("td", _short(value), class_="changed", data_run=str(i)) for i, value in enumerate(values)),
        )
        for key, values in rows
    ]
    return _wide(element("table", element("thead", head), element("tbody", *body)), label)


def _pictures(runs: Sequence[Gathered]) -> Iterator[Markup]:
    left = PICTURES
    missing = []
    for k, name in enumerate(dict.fromkeys(name for each in runs for name in each.pictures)):
        shown = []
        for i, each in enumerate(runs):
            path = each.pictures.get(name)
            content = _bytes(path) if path is not None else b""
            if not content:
                continue
            if len(content) > left:
                missing.append(str(path))
                continue
            left -= len(content)
            source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            caption = element("figcaption", each.run.name)
            image = element("img", src=source, alt=f"{name} of {each.run.name}", loading="lazy")
            shown.append(element("figure", caption, image, data_run=str(i)))
        if shown:
            row = element("div", *shown, class_="pictures", tabindex="0", role="region", aria_label=name)
            yield element("details", element("summary", name.replace("_", " ")), row, open=k == 0)
    if missing:
        yield element("p", f"Too large for this page: {', '.join(missing)}", class_="quiet")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _environment(runs: Sequence[Gathered]) -> Markup:
    found = [each.run.surroundings for each in runs]
    keys = list(dict.fromkeys(key for each in found for key in each))
    if not keys:
        return Markup("")
    return _by_run(runs, [(key, [each.get(key, "") for each in found]) for key in keys], "environment")


def _wide(table: Markup, label: str) -> Markup:
    return element("div", table, class_="wide", tabindex="0", role="region", aria_label=label)


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
