"""Features judged by probes: how well they tell the data's classes apart, of the network of any task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.findings import Findings, gathered
from lightning_modules.task import Batch, Task
from models.features import Embedder, embedder_of
from models.mistakes import Mistake
from models.self_supervised.collapse import effective_rank
from models.self_supervised.knn import knn_votes
from models.self_supervised.linear_probe import linear_logits

# Features whose rank is estimated; a singular value decomposition of more takes long.
_RANKED = 2048
Probe = Literal["knn", "linear"]
# Features [n, C] by side, with `index` [n] and, of labelled images, `label` [n].
Features = dict[str, Tensor]


def embedders_of(task: Task) -> dict[str, Embedder]:
    """What makes features [B, C] of images [B, 3, H, W], by side; the first is the one that is judged.

    A task with a student and a teacher says it in a method `embedders`; of any other it is the network, if that has
    features.

    Args:
        task: With its weights.
    """
    own = getattr(task, "embedders", None)
    if own is not None:
        return dict(own())
    embedder = embedder_of(task.network)
    return {} if embedder is None else {"network": embedder}


def valid_probes(names: Sequence[str]) -> list[Probe]:
    """Probes by name, each once.

    Raises:
        Mistake: None, or an unknown one.
    """
    if not names or not set(names) <= set(get_args(Probe)):
        raise Mistake(f"probes: name {' or '.join(get_args(Probe))}, or both, not {list(names)}")
    return list(dict.fromkeys(names))  # type: ignore[arg-type]


class Embedded:
    """Features of batches of images, by side, as they come in.

    Args:
        embedders: What makes them.
    """

    def __init__(self, embedders: Mapping[str, Embedder]) -> None:
        self._embedders = embedders
        self._found: dict[str, list[Tensor]] = {name: [] for name in (*embedders, "index", "label")}

    def add(self, images: Tensor, batch: Batch) -> Features:
        """Takes a batch, and returns its features.

        Args:
            images: [B, 3, H, W].
            batch: With `index` and perhaps `label`.
        """
        new = {side: embed(images).float() for side, embed in self._embedders.items()}
        new |= {name: batch[name] for name in ("index", "label") if name in batch}
        for name, value in new.items():
            self._found[name].append(value)
        return new

    def merged(self, device: torch.device) -> Features:
        """What all processes have taken; every process must ask, and all get it."""
        own = {name: torch.cat(values).cpu() for name, values in self._found.items() if values}
        every = gathered(own)
        return {
            name: torch.cat([each[name] for each in every if name in each]).to(device)
            for name in self._found
            if any(name in each for each in every)
        }


def judged(
    known: Features, seen: Features, sides: Sequence[str], probes: Sequence[Probe], neighbours: int
) -> dict[str, float | Tensor]:
    """What probes that know some images say of others: `knn_top1`, `linear_top1` and the `rank` of the features.

    Args:
        known: Of images whose classes are known.
        seen: Of those to be classified, with their classes.
        sides: The first is judged; of several, each is named as well, `knn_top1_student`.
        probes: Which are asked.
        neighbours: How many vote.

    Raises:
        Mistake: All known images are of one class.
    """
    metrics: dict[str, float | Tensor] = {}
    for probe in probes:
        labels, known_labels = seen["label"], known["label"]
        if bool((known_labels == known_labels[0]).all()):
            raise Mistake("the training images are all of one class: a probe needs two or more to tell apart")
        classes = int(torch.cat([labels, known_labels]).max()) + 1
        for side in sides:
            if probe == "linear":
                told = linear_logits(seen[side], known[side], known_labels, classes)
            else:
                told = knn_votes(seen[side], known[side], known_labels, classes, neighbours)
            top1 = (told.argmax(1) == labels).float().mean()
            if len(sides) > 1:
                metrics[f"{probe}_top1_{side}"] = top1
            if side == sides[0]:
                metrics[f"{probe}_top1"] = top1
    return metrics | {"rank": effective_rank(seen[sides[0]][:_RANKED])}


class Probing(Task):
    """Judges the features of another task's network on data with classes; nothing is trained.

    Args:
        probed: The task whose network it is; a checkpoint of it is one of this.
        probes: `knn`, `linear` or both.
        neighbours: How many vote.

    Raises:
        Mistake: No probe or an unknown one; a network without features.
    """

    def __init__(self, probed: Task, probes: Sequence[str], neighbours: int = 20) -> None:
        super().__init__(probed.network)
        self.probed = probed
        self.probes, self.neighbours = valid_probes(probes), neighbours
        self._embedders = embedders_of(probed)
        if not self._embedders:
            raise Mistake(
                f"{type(probed.network).__name__} has no features to probe: neither a classifier that sees a vector of "
                "each image nor a backbone"
            )
        self.sides = list(self._embedders)
        self.known: Features = {}
        self.seen: Features = {}
        self._coming = Embedded(self._embedders)

    # A checkpoint is the probed task's.

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        return self.probed.load_state_dict(state_dict, *args, **options)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.probed.on_load_checkpoint(checkpoint)

    @override
    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return self.probed.teacher_pairs()

    # An evaluation.

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        raise NotImplementedError("a probe trains nothing")

    @override
    def start(self, split: str) -> None:
        coming = Embedded(self._embedders)
        with torch.no_grad(), self._precision():
            for batch in self.data.plain_train_dataloader():
                coming.add(*self._with_images(self.on_device(batch)))
        self.known = coming.merged(self.device)
        self._coming = Embedded(self._embedders)

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        return self._coming.add(*self._with_images(batch))

    @override
    def finish(self, split: str) -> Findings:
        self.seen = self._coming.merged(self.device)
        return Findings(judged(self.known, self.seen, self.sides, self.probes, self.neighbours))

    def _with_images(self, batch: Batch) -> tuple[Tensor, Batch]:
        images, labels = batch["image"], batch.get("label")
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor) or labels.ndim != 1:
            raise Mistake(
                f"{type(self.data).__name__} gives its images no class each, which probes ask for: name data of "
                "classes, such as --data ImageFolder --data.root FOLDER"
            )
        return self.probed.in_memory_order(images), batch


def probing(task: Task, probes: Sequence[str]) -> Probing:
    """What judges the features of a task's network.

    Args:
        task: Of any kind.
        probes: `knn`, `linear` or both.
    """
    return Probing(task, probes)
