"""Training of a network that can be searched: a sub-network a step, and the same few in every evaluation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.report import Report
from callbacks.whole_files import write_table
from drawing.sub_networks import sub_networks
from lightning_modules.internals import Clock, expect_unused_parameters
from lightning_modules.task import Task
from models.mistakes import Mistake
from models.supernet import Architecture, Searchable


class SubNetworks(Report):
    """Draws the architecture that a searchable network computes in each training step, and evaluates a fixed set.

    All processes draw alike, and a resumed training draws as one that was never stopped: the draw is that of the task's
    `shared_generator`. Micro-batches of an optimiser step have one architecture. Parameters that it does not use get no
    gradient, and are left as they are by the optimiser; those that it uses a part of are used by it as a whole, so that
    weight decay and momentum move the rest of them, too, as in the published training.

    An evaluation looks at the smallest architecture, the largest and some that are drawn with a seed of their own, the
    same at every time: a random one, as in the published training, would make noise of the curve. Every metric of the
    task, such as `val/top1`, is the largest one's, and is logged as `val/top1_smallest` and `val/top1_inherited`
    besides, the mean over those that are drawn.

    Networks without choices it leaves alone, so that the config of an architecture that was extracted may be that of
    the network that it comes from.

    Args:
        drawn: how many are drawn for evaluations.
        seed: of these draws.

    Raises:
        Mistake: fewer than one drawn; a checkpoint of another space.
    """

    pictures: ClassVar = {"sub_networks.png": "what architectures reach with the weights that they share"}
    files: ClassVar = {"sub_networks.csv": "architectures that are evaluated, what they cost and reach"}
    in_every_run = False

    def __init__(self, drawn: int = 4, seed: int = 0) -> None:
        if drawn < 1:
            raise Mistake(f"SubNetworks: drawn is at least 1, not {drawn}")
        self.drawn, self.seed = drawn, seed
        self._choices: dict[str, list[float]] = {}
        self._step: int | None = None
        self._architecture: Architecture = ()
        self._evaluated: dict[str, Architecture] = {}
        self._found: dict[str, Mapping[str, Tensor | float]] = {}

    @override
    def applies(self, task: LightningModule) -> bool:
        return super().applies(task) and isinstance(task.network, Searchable)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.applies(pl_module):
            network = _searchable(pl_module)
            self._choices = {name: list(values) for name, values in network.space.choices.items()}
            self._evaluated = evaluated(network, self.drawn, self.seed)
            expect_unused_parameters(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The space, by which a checkpoint is told from those of others."""
        return {"space": self._choices}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["space"] != self._choices:
            raise Mistake(
                f"the checkpoint's network was trained in the space {state_dict['space']}, and this one has "
                f"{self._choices}: take the space of its config"
            )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.applies(pl_module):
            return
        network, task, step = _searchable(pl_module), cast(Task, pl_module), Clock(trainer).step
        if step != self._step:
            seed = torch.randint(2**62, (), generator=task.shared_generator)
            self._step, self._architecture = step, network.space.draw(Random(int(seed)))
        # An evaluation may have come between.
        network.choose(self._architecture)

    @override
    def start(self) -> None:
        """Evaluates all but the largest, which is what the task itself evaluates next."""
        network, trainer = self.task.network, self.trainer
        of_tests = self.split == "test"
        loader: Any = trainer.test_dataloaders if of_tests else trainer.val_dataloaders
        batches = (trainer.num_test_batches if of_tests else trainer.num_val_batches)[0]
        self._found = {}
        try:
            for name, architecture in self._evaluated.items():
                if name != "largest":
                    network.choose(architecture)
                    limit = None if batches == float("inf") else int(batches)
                    self._found[name] = self.task.evaluate(itertools.islice(loader, limit), self.split).metrics
        finally:
            network.choose(network.space.largest())

    @override
    def merge(self) -> None:
        self._found["largest"] = self.task.conclude(self.split).metrics
        self._ready = True

    @override
    def metrics(self) -> Mapping[str, float | Tensor]:
        found = self._found
        drawn = [each for name, each in found.items() if name.startswith("drawn")]
        means = {f"{key}_inherited": sum(float(each[key]) for each in drawn) / len(drawn) for key in found["largest"]}
        return means | {f"{key}_smallest": float(value) for key, value in found["smallest"].items()}

    @override
    def draw(self) -> Mapping[str, Figure]:
        assert self.place is not None
        names, monitored = list(self._found["largest"]), str(self.task.monitor).partition("/")[2]
        shown = monitored if monitored in names else names[0]
        points = {each: (row["multiply_adds"], float(row[shown])) for each, row in self._rows().items()}
        return {"sub_networks": sub_networks(points, shown, self.place.title)}

    @override
    def write(self, folder: Path) -> None:
        rows = self._rows()
        header = ["name", *next(iter(rows.values()))]
        write_table(folder / "sub_networks.csv", [header, *([name, *row.values()] for name, row in rows.items())])

    def _rows(self) -> dict[str, dict[str, Any]]:
        """What is known of each architecture, by its name."""
        network = self.task.network
        return {
            name: {"architecture": json.dumps(network.space.described(architecture))}
            | network.cost(architecture)
            | {key: float(value) for key, value in self._found[name].items()}
            for name, architecture in self._evaluated.items()
        }


def _searchable(pl_module: LightningModule) -> Searchable:
    return cast(Searchable, pl_module.network)


def evaluated(network: Searchable, drawn: int, seed: int) -> dict[str, Architecture]:
    """The architectures that evaluations look at, by name: the smallest, some drawn ones and the largest."""
    space, random = network.space, Random(seed)
    some = {f"drawn{i}": space.draw(random) for i in range(drawn)}
    return {"smallest": space.smallest(), **some, "largest": space.largest()}
