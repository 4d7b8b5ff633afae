"""What `prune` tells a person: layers and costs before and after, and how the arms ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drawing.numbers import readable
from exp.run_state import read_state

if TYPE_CHECKING:
    from torch import nn

    from exp.plans import Pruning
    from models.pruning.plan import Plan

WRITTEN = {
    "plan.json": "which channels each layer keeps",
    "layers.csv": "every layer before and after",
    "costs.json": "parameters, multiply-adds and seconds before and after, and what a validation found then",
    "channels.png": "channels kept by layer",
    "start.safetensors": "the weights that are left",
    "fine_tune.yaml": "trains them further",
    "scratch.yaml": "trains the same architecture from random weights, at the same compute",
}
UNITS = {"parameters": "parameters", "macs": "multiply-adds", "seconds": "seconds"}


def table_of(pruning: Pruning, plan: Plan, small: nn.Module) -> dict[str, Any]:
    """Layers and costs before and after, in plain values.

    Args:
        pruning: what was done.
        plan: what was planned.
        small: the network by the plan.
    """
    found = pruning.found(small)
    return {"layers": pruning.layers(small), "costs": pruning.costs(small), "found": found, "why": dict(plan.why)}


def print_table(table: dict[str, Any], scratch: int | None, folder: Path) -> None:
    """Prints the table, what training from scratch would take, and where everything lies.

    Args:
        table: of `table_of`.
        scratch: epochs of Scratch-B, if the run was trained for epochs.
        folder: where the plan was written.
    """
    console = Console(emoji=False)
    layers = Table("layer", box=None)
    for name in ("channels", "kept", "multiply-adds", "left"):
        layers.add_column(name, justify="right")
    for row in table["layers"]:
        share = f"{row['macs_left'] / row['macs']:.0%}" if row["macs"] else ""
        layers.add_row(escape(row["layer"]), str(row["channels"]), str(row["kept"]), readable(row["macs"]), share)
    console.print(layers)
    before, after = table["costs"]["before"], table["costs"]["after"]
    for key, unit in UNITS.items():
        values = [f"{each[key] * 1e3:.2f} ms" if key == "seconds" else readable(each[key]) for each in (before, after)]
        console.print(f"{unit}: {values[0]} -> {values[1]} ({after[key] / before[key]:.1%})", highlight=False)
    found = "  ".join(f"{name} {value:.4f}" for name, value in table["found"].items())
    console.print(f"before it is trained further: {found}", highlight=False, markup=False)
    if cost := table["why"].get("rounding_costs"):
        console.print(f"rounding widths costs {cost:.1%} of what the network cost", highlight=False)
    if whole := table["why"].get("whole"):
        console.print(f"whole, because their channels cannot be told apart: {', '.join(whole)}", markup=False)
    if scratch is not None:
        console.print(
            f"Scratch-B, this architecture from random weights for the compute of the unpruned training: {scratch} "
            f"epochs, by --versus-scratch or `python -m exp fit --config {folder / 'scratch.yaml'}`",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    there = {name: told for name, told in WRITTEN.items() if (folder / name).is_file()}
    console.print(f"in {folder}:", highlight=False, markup=False)
    for name, told in there.items():
        console.print(f"  {name}: {told}", highlight=False, markup=False)


def print_arms(arms: dict[str, Path]) -> None:
    """Prints how the newest run of each arm ended.

    Args:
        arms: the folder of the experiment of each.
    """
    ended = {}
    for arm, folder in arms.items():
        runs = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
        facts = read_state(runs[-1]) if runs else {}
        ended[arm] = {"best on the validation split": facts.get("best")} | dict(facts.get("test") or {})
    metrics = list(dict.fromkeys(name for values in ended.values() for name in values))
    table = Table("arm", *map(escape, metrics), box=None)
    for arm, values in ended.items():
        table.add_row(arm, *(f"{values[name]:.4f}" if values.get(name) is not None else "" for name in metrics))
    Console(emoji=False).print(table)


def asked_before(folder: Path) -> dict[str, Any]:
    """What an earlier command asked of the pruning that lies in a folder; empty if it does not say."""
    try:
        content = json.loads((folder / "asked.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
