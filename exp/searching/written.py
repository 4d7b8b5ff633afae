"""What a search leaves: a table, pictures, its candidates, and the best architectures as configs with weights."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.whole_files import write_picture, write_table, write_whole
from drawing.searching import choices_that_win, search_front
from exp.convert import write
from exp.extraction import config_of_architecture
from exp.searching.limits import short
from exp.searching.search_run import Row, Search

# Of what is drawn as the best, the share of all candidates, and how many they are at least.
_SHARE, _LEAST = 0.1, 5


def write_result(search: Search, rows: list[Row]) -> None:
    """Tests the best candidates, writes everything, and prints a table.

    Args:
        search: What was asked.
        rows: All of its candidates.
    """
    best, along = search.best(rows), search.on_front(rows)
    tested = [search.test(row) for row in best]
    described = search.network.space.described
    metric = search.metric
    names = [_name(i) for i in range(len(best))]
    for name, row in zip(names, best, strict=True):
        _write_architecture(search, row, search.folder / name)
        state = search.network.extracted(row.architecture).state_dict()
        pixels = search.cli.datamodule.pixels.plain()
        write(state, search.folder / f"{name}.safetensors", pixels)
    for i, row in enumerate(along):
        _write_architecture(search, row, search.folder / "front" / f"{i:02d}")
    first = [row.metrics[metric] for row in rows if row.generation == 0]
    result = {
        "metric": f"val/{metric}",
        "evaluated": len(rows),
        "random": {"mean": statistics.fmean(first), "deviation": statistics.pstdev(first), "candidates": len(first)},
        "best": [
            {
                "architecture": described(row.architecture),
                metric: row.metrics[metric],
                f"test/{metric}": found[metric],
                "costs": row.costs,
            }
            for row, found in zip(best, tested, strict=True)
        ],
        "front": [
            {"architecture": described(row.architecture), metric: row.metrics[metric]} | row.costs for row in along
        ],
        "latency": search.latency.facts if search.latency else None,
    }
    write_whole(search.folder / "result.json", json.dumps(result, indent=1) + "\n")
    write_table(search.folder / "candidates.csv", _table(search, rows))
    _draw(search, rows, best[0], along)
    _print(search, best, tested, names, result)


def _table(search: Search, rows: list[Row]) -> list[list[Any]]:
    metrics = list(rows[0].metrics)
    header = ["number", "generation", "origin", *metrics, *search.costs.names, "architecture"]
    return [header] + [
        [
            number,
            row.generation,
            row.origin,
            *(row.metrics.get(name) for name in metrics),
            *row.costs.values(),
            json.dumps(search.network.space.described(row.architecture)),
        ]
        for number, row in enumerate(rows)
    ]


def _draw(search: Search, rows: list[Row], best: Row, along: list[Row]) -> None:
    metric, axis, folder = search.metric, search.axis, search.folder
    line = [row.costs[axis] for row in along], [row.metrics[metric] for row in along]
    figure = search_front(
        [row.costs[axis] for row in rows],
        [row.metrics[metric] for row in rows],
        [row.generation for row in rows],
        line,
        rows.index(best),
        (axis, f"val/{metric}"),
        f"{search.options.strategy}, {search.limits}, {len(rows)} candidates",
    )
    write_picture(folder / "front.png", figure)
    ranked = sorted(rows, key=lambda row: -row.fitness)[: max(_LEAST, round(_SHARE * len(rows)))]
    title = f"what {len(rows)} candidates chose, and the {len(ranked)} best of them"
    write_picture(folder / "choices.png", choices_that_win(_values(search, rows), _values(search, ranked), title))


def _values(search: Search, rows: Sequence[Row]) -> dict[str, list[float]]:
    """The values that architectures have by the names of choices, those of all layers together."""
    found: dict[str, list[float]] = {name: [] for name in search.network.space.choices}
    for row in rows:
        for name, value in search.network.space.described(row.architecture).items():
            found[name] += value if isinstance(value, list) else [value]
    return found


def _write_architecture(search: Search, row: Row, path: Path) -> None:
    """The config that trains an architecture on its own, as the supernet was trained."""
    config = config_of_architecture(search.cli.plain, search.network.space.described(row.architecture))
    config |= {"experiment": f"{search.cli.experiment}-{search.folder.name}-{path.name}"}
    costs = ", ".join(f"{name} {short(value)}" for name, value in row.costs.items())
    inherits = (
        f"#\n#     python -m exp fit --config {path}.yaml --weights {path}.safetensors\n#\n# inherits its weights."
    )
    found = f"val/{search.metric} {row.metrics[search.metric]:.4f} with inherited weights; {costs}."
    text = (
        f"# An architecture that `exp search` found: {found}\n#\n#     python -m exp fit --config {path}.yaml\n#\n"
        f"# trains it from random weights{f', and{chr(10)}{inherits}' if path.parent == search.folder else '.'}\n"
    )
    write_whole(path.with_name(f"{path.name}.yaml"), text + yaml.safe_dump(config, sort_keys=False))


def _name(place: int) -> str:
    return "best" if place == 0 else f"best_{place + 1}"


def _print(
    search: Search, best: list[Row], tested: list[dict[str, float]], names: list[str], result: Mapping[str, Any]
) -> None:
    # In a log file, tables take the width that they need.
    console = Console(width=None if sys.stdout.isatty() else 160, emoji=False)
    metric = search.metric
    table = Table("architecture", f"val/{metric}", f"test/{metric}", *map(escape, search.costs.names), box=None)
    for name, row, found in zip(names, best, tested, strict=True):
        costs = [short(row.costs[each]) for each in search.costs.names]
        table.add_row(name, f"{row.metrics[metric]:.4f}", f"{found[metric]:.4f}", *costs)
    console.print(table, highlight=False)
    random = result["random"]
    lines = [
        *(f"{name}: {_said(each['architecture'])}" for name, each in zip(names, result["best"], strict=True)),
        f"{random['candidates']} random ones within the limits: val/{metric} {random['mean']:.4f} on average (standard "
        f"deviation {random['deviation']:.4f})",
        f"front over {search.axis}: {len(result['front'])} architectures",
        *([search.latency.sentence()] if search.latency else []),
        f"in {search.folder}: result.json, candidates.csv, front.png, choices.png, front/, "
        + ", ".join(f"{name}.yaml and .safetensors" for name in names),
        f"python -m exp fit --config {search.folder}/best.yaml trains it alone; with --weights "
        f"{search.folder}/best.safetensors from the weights that it inherits",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _said(described: Mapping[str, Any]) -> str:
    """An architecture in one line."""
    return ", ".join(
        f"{name} {' '.join(f'{each:g}' for each in (value if isinstance(value, list) else [value]))}"
        for name, value in described.items()
    )
