"""What `predict` makes of a classifier's answers: a table of labels and an annotated contact sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor, nn
from typing_extensions import override

from callbacks.reports.cost import Cost
from callbacks.reports.exit_curve import ExitCurve
from callbacks.reports.predictions import Predictions, Source, title_of
from callbacks.whole_files import write_picture, write_table
from drawing.figures import SMALL, contact_sheet
from drawing.numbers import readable
from lightning_modules.classification import Classification
from lightning_modules.task import Task
from models.anytime import ExitThresholds, MultiExit, Policy, exit_costs, run
from models.mistakes import Mistake

TOP = 5
ON_SHEET = 36


class Labels(Predictions):
    """Writes the likeliest classes of each image, and where images leave a network with exits.

    Args:
        budget: early exit: the share of the last exit's multiply-adds to spend, in (0, 1].
        thresholds: with --budget: the thresholds.json to use (default: the checkpoint's own thresholds).
    """

    reads = Classification

    def __init__(self, budget: float | None = None, thresholds: str | None = None) -> None:
        super().__init__()
        self.budget, self.thresholds = budget, thresholds
        self._exits: Tensor | None = None

    @override
    def prepare(self, trainer: Trainer, task: Task, source: Source) -> None:
        super().prepare(trainer, task, source)
        budget, network = self.budget, task.network
        if budget is None:
            if self.thresholds is not None:
                raise Mistake("--thresholds says when images leave for a --budget: give both, or none")
            return
        if not 0 < budget <= 1:
            raise Mistake(f"--budget {budget:g}: it is a share of the last exit's multiply-adds, in (0, 1]")
        if not (isinstance(task, Classification) and isinstance(network, MultiExit) and network.num_exits > 1):
            raise Mistake(
                f"--budget: {type(network).__name__} has no exits where images could leave; leave --budget out, or "
                "train a network with exits, such as RANet or DVT"
            )
        plain = _read(self.thresholds) if self.thresholds else _stored(source)
        try:
            solved = ExitThresholds.from_plain(plain)
        except ValueError as error:
            place = f"--thresholds {self.thresholds}" if self.thresholds else source.path
            raise Mistake(f"{place}: {error}; `python -m exp validate` writes others") from error
        try:
            task.policy = solved.policy(budget)
            task.policy.check(network.num_exits)
        except ValueError as error:
            raise Mistake(f"--budget {budget:g}, {self.thresholds or source.path}: {error}") from error

    @classmethod
    @override
    def notes(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        plain = content.get("callbacks", {}).get(ExitCurve.__qualname__)
        return {"thresholds": plain} if plain else {}

    @override
    def entries(self, batches: list[Any], task: Any, data: Any) -> list[dict[str, Any]]:
        """Of each image `file`, `label_1`, `probability_1` ..., the likeliest first, and perhaps its `exit`."""
        indices = torch.cat([batch["index"] for batch in batches]).tolist()
        probabilities = torch.cat([batch["probabilities"] for batch in batches]).cpu()
        exits = torch.cat([batch["exit"] for batch in batches]).tolist() if "exit" in batches[0] else None
        names = self.names_of(probabilities.shape[1])
        values, classes = probabilities.topk(min(TOP, len(names)))
        entries = []
        for row, index in enumerate(indices):
            entry: dict[str, Any] = {"file": data.sample_name("predict", index)}
            for place, (label, share) in enumerate(zip(classes[row].tolist(), values[row].tolist(), strict=True), 1):
                entry |= {f"label_{place}": names[label], f"probability_{place}": round(share, 4)}
            entries.append(entry | ({} if exits is None else {"exit": exits[row]}))
        return entries

    @override
    def finish(self, batches: list[Any], folder: Path, console: Console) -> list[Path]:
        indices = torch.cat([batch["index"] for batch in batches]).tolist()
        self._exits = torch.cat([batch["exit"] for batch in batches]).cpu() if "exit" in batches[0] else None
        entries = self.entries(batches, self.task, self.data)
        target = folder / "predictions.csv"
        rows = [[f"{each:.4f}" if isinstance(each, float) else each for each in entry.values()] for entry in entries]
        write_table(target, [list(entries[0]), *rows])
        shown = list(zip(indices, entries, strict=True))[:ON_SHEET]
        captions = [
            f"{Path(entry['file']).name}\n{entry['label_1']} ({entry['probability_1']:.0%})" for _, entry in shown
        ]
        images = [self.data.picture("predict", index, SMALL) for index, _ in shown]
        figure = contact_sheet(images, captions, title_of(len(indices), ON_SHEET))
        sheet = write_picture(folder / "contact_sheet.png", figure)
        table = Table(Column("file", overflow="fold"), "label", "probability", box=None)
        for _, entry in shown:
            table.add_row(escape(entry["file"]), escape(entry["label_1"]), f"{entry['probability_1']:.4f}")
        console.print(table, highlight=False)
        return [target, sheet]

    @override
    def counted_network(self) -> nn.Module:
        policy = self.task.policy
        return self.task.network if policy is None else _EarlyExit(self.task.network, policy)

    @override
    def spent(self, cost: Cost, images: int) -> dict[str, Any]:
        found = super().spent(cost, images)
        if self._exits is None:
            return found
        costs = exit_costs(self.task.network, cost.inputs[0].shape[1:])
        shares = (self._exits.bincount(minlength=len(costs)).double() / images).tolist()
        macs = sum(share * each for share, each in zip(shares, costs, strict=True))
        return found | {
            "budget": self.budget,
            "share": macs / costs[-1],
            "macs": macs,
            "exit_macs": costs,
            "exit_shares": shares,
        }

    @override
    def tell_spent(self, spent: Mapping[str, Any], console: Console) -> None:
        if "budget" in spent:
            table = Table("exit", "images", "multiply-adds", box=None)
            for exit, (share, macs) in enumerate(zip(spent["exit_shares"], spent["exit_macs"], strict=True)):
                table.add_row(str(exit), f"{share:.1%}", readable(macs))
            console.print(table, highlight=False)
            console.print(
                f"by the exits taken: {readable(spent['macs'])} multiply-adds an image, {spent['share']:.1%} of the "
                f"last exit's, for a budget of {spent['budget']:.1%}",
                highlight=False,
                soft_wrap=True,
            )
        super().tell_spent(spent, console)


class _EarlyExit(nn.Module):
    """Early exit as a network, to count what it executes."""

    def __init__(self, network: MultiExit, policy: Policy) -> None:
        super().__init__()
        self.network, self.policy = network, policy

    @override
    def forward(self, images: Tensor) -> Tensor:
        return run(self.network, images, self.policy)[0]


def _stored(source: Source) -> dict[str, Any]:
    if plain := source.content.get("callbacks", {}).get(ExitCurve.__qualname__):
        return plain
    option = "--ckpt_path" if source.content else "--weights"
    raise Mistake(
        f"--budget: {source.path} holds no thresholds, as no validation preceded it: solve them by "
        f"`python -m exp validate {option} {source.path}`, then add --thresholds {source.validated / 'thresholds.json'}"
    )


def _read(file: str) -> dict[str, Any]:
    try:
        return json.loads(Path(file).read_text())
    except OSError as error:
        raise Mistake(f"--thresholds {file}: {error.strerror}; `python -m exp validate` writes it") from error
    except (ValueError, RecursionError) as error:
        raise Mistake(f"--thresholds {file}: not JSON ({error}); `python -m exp validate` writes it") from error
