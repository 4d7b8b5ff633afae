"""Training of a network that can be searched: a sub-network a step, and the same few in every evaluation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar

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

    Args:
        drawn: how many are drawn for evaluations.
        seed: of these draws.

    Raises:
        Mistake: fewer than one drawn; a network that cannot be searched; a checkpoint of another space.
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
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        network = getattr(pl_module, "network", None)
        if not isinstance(pl_module, Task) or not isinstance(network, Searchable):
            raise Mistake(
                f"SubNetworks: {type(network).__name__} has no space to draw from; give it a searchable network, such "
                "as models.supernet.autoformer_supernet, or leave the callback out"
            )
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
        assert isinstance(pl_module, Task)
        network: Any = pl_module.network
        step = Clock(trainer).step
        if step != self._step:
            seed = torch.randint(2**62, (), generator=pl_module.shared_generator)
            self._step, self._architecture = step, network.space.draw(Random(int(seed)))
        # An evaluation may have come between.
        network.choose(self._architecture)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.network
        network.choose(network.space.largest())
        super().on_validation_epoch_start(trainer, pl_module)

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
        name = str(self.task.monitor).partition("/")[2]
        shown = next(key for key in (name, name.rpartition("_")[0], *self._found["largest"]) if key in self._found["largest"])
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


def evaluated(network: Searchable, drawn: int, seed: int) -> dict[str, Architecture]:
    """The architectures that evaluations look at, by name: the smallest, some drawn ones and the largest."""
    space, random = network.space, Random(seed)
    some = {f"drawn{i}": space.draw(random) for i in range(drawn)}
    return {"smallest": space.smallest(), **some, "largest": space.largest()}
