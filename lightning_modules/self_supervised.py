"""Learning without labels: a student and its teacher, evaluated by the nearest neighbours of their features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_modules.findings import Findings, gathered
from lightning_modules.internals import Clock, step_counts, trainer_of
from lightning_modules.optimization import Quantity
from lightning_modules.probing import Embedded, Features, Probe, judged, valid_probes
from lightning_modules.schedules import Schedule
from lightning_modules.task import Batch, Task
from lightning_modules.teachers import tell_if_none_moves
from models.features import Embedder
from models.mistakes import Mistake
from models.self_supervised.learner import Learner, Side

# Optimiser steps before which nothing is said of a collapse: deep networks begin with all images at nearly one point.
_YOUNG = 100


@dataclass(frozen=True)
class FeatureFindings(Findings):
    """What an evaluation found, with the features that it is about.

    Args:
        side: whose they are, `student` or `teacher`.
        known: of the training images, without augmentation.
        seen: of the evaluated images.
    """

    side: Side = "student"
    known: Features = field(default_factory=dict)
    seen: Features = field(default_factory=dict)


class SelfSupervised(Task):
    """Trains a learner on views of images, and says how good its features are for telling the data's classes apart.

    Batches to train on have `image`, a list of views [V, B, 3, H, W], one tensor for each size, as
    `datamodules.MultiView` makes them; others are those of a classification. What moves the teacher is a callback,
    `callbacks.Smoothing`; queue and centre move once every optimiser step.

    An evaluation takes the features of all training images, without augmentation, and lets the nearest of them vote
    for the class of each evaluated image: `knn_top1` of the side that the paper evaluates, and of both by name if both
    are asked for. With the probe `linear`, a logistic regression on the same features tells the classes, too:
    `linear_top1`. It also says how spread the representations are, and warns when they have collapsed. Images without
    classes have no probes, and nothing says which checkpoint is best.

    Args:
        network: the learner: `models.self_supervised.MoCo`, `BYOL` or `DINO`.
        neighbours: how many vote.
        probes: `knn`, `linear` or both; the first is the one that runs are judged by.
        evaluates: `student`, `teacher` or `both`; by default what the paper evaluates.
        clip_each: largest norm of the gradient of each parameter, as DINO clips; None leaves clipping to the trainer.
        network_schedules: numbers of the learner that change over the steps, by the names of its attributes, relative
            to what it is given: `teacher_temp` of DINO is `WarmupCosine` with `by_epoch: true`, `warmup_lr` its first
            and `min_lr` its last value.
        options: see `Task`.

    Raises:
        Mistake: no probe, or an unknown one; a schedule of something that the learner does not have.
    """

    monitor_mode = "max"
    network: Learner

    def __init__(
        self,
        network: Learner,
        neighbours: int = 20,
        probes: Sequence[Probe] = ("knn",),
        evaluates: Literal["student", "teacher", "both"] | None = None,
        clip_each: float | None = None,
        network_schedules: dict[str, Schedule] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        network.generator = self.shared_generator
        self.neighbours = neighbours
        self.probes = valid_probes(probes)
        self.shown = tuple(f"{probe}_top1" for probe in self.probes)
        self.monitor = f"val/{self.shown[0]}"
        if evaluates == "both":
            # The first is judged.
            others: list[Side] = ["student", "teacher"]
            self.sides = list(dict.fromkeys([network.published, *others]))
        else:
            self.sides = [evaluates or network.published]
        self.clip_each = clip_each
        self.network_schedules = network_schedules or {}
        for name in self.network_schedules:
            if not isinstance(getattr(network, name, None), float):
                numbers = [key for key, value in vars(network).items() if type(value) is float]
                raise Mistake(
                    f"network_schedules: {type(network).__name__} has no number {name!r}; it has "
                    f"{', '.join(numbers) or 'none'}"
                )
        self._known: Features = {}
        self._seen = Embedded({})
        self._tally: dict[str, Tensor] = {}

    def embedders(self) -> dict[str, Embedder]:
        """What makes features of images, by the sides that are evaluated; the first is judged."""
        return {side: self.network.side(side).features for side in self.sides}

    @override
    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return self.network.pairs()

    @override
    def setup(self, stage: str) -> None:
        """Does without probes where the images have no classes."""
        super().setup(stage)
        if self.probes and self.data is not None and not self.data.num_classes and stage != "predict":
            rank_zero_warn(
                "the images have no classes that a probe could tell apart: none is asked, and no checkpoint is the best"
            )
            self.probes, self.monitor, self.shown, self.curves = [], None, ("rank",), ("rank",)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says whose features are evaluated, for those who go on with a backbone alone."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["published"] = self.sides[0]

    @override
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """Images of an evaluation; of a training batch those that a teacher sees, the first views of one size."""
        images = batch["image"]
        return (self.in_memory_order(images[0].flatten(0, 1) if isinstance(images, list) else images),)

    # A training step.

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        tell_if_none_moves(self.trainer.callbacks)  # type: ignore[attr-defined]

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The learner's loss, with penalties."""
        views = batch["image"]
        if not isinstance(views, list):
            raise Mistake("the batch has one view of each image: put the data module into datamodules.MultiView")
        loss = self.network([self.in_memory_order(view.flatten(0, 1)).unflatten(0, view.shape[:2]) for view in views])
        remarks = self.network.remarks(Clock(self.trainer).step)
        return self.total_loss({type(self.network).__name__.lower(): loss}, remarks, views[0].shape[1])

    @override
    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Takes the step, after which queue and centre move."""
        super().optimizer_step(*args, **options)
        self.network.advance()

    @override
    def configure_optimizers(self) -> Optimizer:
        """The optimiser, and what of it and of the learner changes over the steps."""
        optimizer = super().configure_optimizers()
        steps_per_epoch, total_steps = step_counts(self.trainer)
        if not self.trainer.fast_dev_run and total_steps is not None:  # type: ignore[attr-defined]
            for name, schedule in self.network_schedules.items():
                table = schedule.table(getattr(self.network, name), steps_per_epoch, total_steps).tolist()
                self.quantities[name] = _follow(self.network, name, table)
        return optimizer

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips gradients, and takes away those of parameters that are to stay as they are in this epoch."""
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self.clip_each is not None:
            clip_each(self.network.parameters(), self.clip_each)
        for parameter in self.network.frozen_parameters(self.trainer.current_epoch):
            parameter.grad = None

    # An evaluation.

    @override
    def start(self, split: str) -> None:
        self._seen = Embedded(self.embedders())
        self._tally = {}
        self._known = self.features_of(self.data.plain_train_dataloader())

    @torch.no_grad()
    def features_of(self, batches: Iterable[Batch]) -> Features:
        """Features of images by side, of all processes; the network is in evaluation mode.

        Args:
            batches: as the data module's loaders yield them.
        """
        found = Embedded(self.embedders())
        with self._precision():
            for batch in batches:
                on_device = self.on_device(batch)
                found.add(self.inputs(on_device)[0], on_device)
        return found.merged(self.device)

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Counts a batch; returns `index` and the published side's `features`."""
        found = self._seen.add(self.inputs(batch)[0], batch)
        for name, value in self.network.tally(*self.inputs(batch)).items():
            self._tally[name] = self._tally[name] + value.double() if name in self._tally else value.double()
        return {"index": batch["index"], "features": found[self.sides[0]]}

    @override
    def finish(self, split: str) -> Findings:
        seen, known = self._seen.merged(self.device), self._known
        metrics = judged(known, seen, self.sides, self.probes, self.neighbours)
        tallies = gathered({name: value.cpu() for name, value in self._tally.items()})
        summed = {name: torch.stack([each[name] for each in tallies if each]).sum(0) for name in tallies[0]}
        signs = {name: value.float() for name, value in self.network.signs(summed, len(seen["index"])).items()}
        if (why := self.network.collapsed(signs)) and not self._has_hardly_begun():
            rank_zero_warn(f"the features have collapsed: {why}. What is learnt from here on is worth nothing.")
        return FeatureFindings(metrics | signs, self.sides[0], known, seen)

    def _has_hardly_begun(self) -> bool:
        """Whether a training is so young that its projections may lie close together all the same."""
        trainer = trainer_of(self)
        return trainer is not None and trainer.state.fn == "fit" and trainer.global_step < _YOUNG

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Published features [B, C], and the samples' indices [B]."""
        features = self.network.side(self.network.published).features(*self.inputs(batch))
        return {"index": batch["index"], "features": features.float()}


def _follow(network: nn.Module, name: str, table: list[float]) -> Quantity:
    return Quantity(lambda step: table[min(step, len(table) - 1)], lambda value: setattr(network, name, value))


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scales the gradient of each parameter whose norm is above a limit down to it, in place.

    Reference: the published code of "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294.

    Args:
        parameters: those without a gradient are left alone.
        limit: largest norm.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        factors = limit / (torch.stack(torch._foreach_norm(gradients)) + 1e-6)
        torch._foreach_mul_(gradients, list(factors.clamp(max=1.0).unbind()))
