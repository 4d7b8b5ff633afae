"""Teachers that follow their students while these train, in any task that has a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from callbacks.precise_bn import Recalibration
from callbacks.step_seed import StepSeed
from lightning_modules.internals import Clock
from lightning_modules.optimization import Quantity
from lightning_modules.randomness import step_seed
from lightning_modules.schedules import Schedule
from lightning_modules.task import Task
from models.mistakes import Mistake
from models.smoothing import BatchNormPolicy, Smoother, Unit, effective_momentum, has_batch_norm

Init = Literal["copy", "masked", "own"]
When = Literal["after", "before"]
# In place of an epoch in the seeds of draws, which are functions of the optimiser step: no other draw has such seeds.
NO_EPOCH = -1


@dataclass
class Rule:
    """How weights follow others: a unit is kept with probability p, and else takes the step T <- m T + (1 - m) S.

    A moving average has p = 0, a spatial ensemble m = 0 and spatial-temporal smoothing both, see
    `models.smoothing.rules`. On average each is a moving average of the momentum 1 - (1 - p)(1 - m).

    Args:
        momentum: m.
        keep: p.
        unit: `tensor`, `layer`, `channel` or `element`, see `models.smoothing.Units`.
        momentum_schedule: m over the optimiser steps, relative to `momentum`; half a cosine up to 1 is
            `WarmupCosine` with `min_lr: 1`.
        keep_schedule: p over the optimiser steps, relative to `keep`.
        keep_layers: p of the parameters whose names contain a text, which has no schedule; the first text that fits
            counts.

    Raises:
        Mistake: m or p outside [0, 1].
    """

    momentum: float = 0.99
    keep: float = 0.0
    unit: Unit = "tensor"
    momentum_schedule: Schedule | None = None
    keep_schedule: Schedule | None = None
    keep_layers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = {f"keep_layers: {text}": value for text, value in self.keep_layers.items()}
        for name, value in {"momentum": self.momentum, "keep": self.keep, **layers}.items():
            if not 0.0 <= value <= 1.0:
                raise Mistake(f"smoothing: {name} is a share, from 0 to 1, not {value}")

    @property
    def keeps(self) -> bool:
        """Whether any unit may be kept."""
        return self.keep > 0 or bool(self.keep_layers)


class Following:
    """A rule at work in a training: what it does at each step, and what is logged of it.

    Args:
        name: of what follows, in the names of what is logged: `teacher` or `average`.
        rule: the rule.
        smoother: what follows what.
        trainer: the training's.
        begun: optimiser step at which it began to follow, from which schedules count.
    """

    def __init__(self, name: str, rule: Rule, smoother: Smoother, trainer: Trainer, begun: int = 0) -> None:
        self.name, self.rule, self.smoother, self.begun = name, rule, smoother, begun
        self.momentum = _over_steps(rule.momentum_schedule, rule.momentum, trainer)
        self.keep = _over_steps(rule.keep_schedule, rule.keep, trainer)
        self.seed = seed_of(trainer)

    def update(self, step: int) -> None:
        """Does what is due at an optimiser step.

        Args:
            step: from 0.
        """
        index = step - self.begun
        self.smoother.update(self.momentum(index), self.keep(index), step_seed(self.seed, NO_EPOCH, step))

    def announce(self, task: LightningModule) -> None:
        """Has the task log what changes from step to step."""
        quantities: dict[str, Quantity] = task.quantities  # type: ignore[assignment]
        quantities[f"{self.name}_momentum"] = Quantity(lambda step: self.momentum(step - self.begun), _nowhere)
        if self.rule.keeps:
            quantities[f"{self.name}_effective_momentum"] = Quantity(
                lambda step: effective_momentum(self.keep(step - self.begun), self.momentum(step - self.begun)),
                _nowhere,
            )

    def log(self, trainer: Trainer, task: LightningModule) -> None:
        """Logs, where a step is logged, how far apart they are, and what is renewed, and how old, of each layer."""
        clock = Clock(trainer)
        if not clock.logs(clock.step):
            return
        task.log(f"train/{self.name}_distance", self.smoother.distance())
        if self.rule.keeps:
            for what, values in (("renewed", self.smoother.renewed), ("age", self.smoother.ages)):
                for layer, mean in self.smoother.by_layer(values).items():
                    task.log(f"train/{self.name}_{what}/{layer}", mean)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"ages": self.smoother.ages.cpu()} if self.rule.keeps else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores it; ages of other units are forgotten."""
        if "ages" in state and state["ages"].shape == self.smoother.ages.shape:
            self.smoother.ages.copy_(state["ages"])


class Smoothing(Callback):
    """Moves the teachers of a task after their students, once every optimiser step, by any smoothing rule.

    Works with every task whose `teacher_pairs` has some, by the names of their parameters. What is drawn is a function
    of the run's seed and the step: the same on all processes, and in a resumed run, on however many processes.

    Logs `train/teacher_momentum` and `train/teacher_distance`, the norm of the difference as a share of the student's
    norm; where units are kept also `train/teacher_effective_momentum` and, of each layer,
    `train/teacher_renewed/<layer>`, the share of its units that the step renewed, and `train/teacher_age/<layer>`, the
    steps since they were, in the mean.

    Reference: "Spatial Ensemble: a Novel Model Smoothing Mechanism for Student-Teacher Framework", arXiv 2110.01253.

    Args:
        rule: the rule.
        batch_norm: what becomes of running statistics, see `models.smoothing.Smoother`. With `own` the teacher is kept
            in training mode, with `ema` in evaluation mode.
        init: what a teacher is when a training begins: a `copy` of its student; `own`, what it was built as; or
            `masked`, what it was built as but for the units that are not kept, which are copies, as published.
        when: `after` an optimiser step, or `before` it, with the student as the step before has left it: MoCo and the
            published Spatial Ensemble. Either way a step's momentum is that of its number.

    Raises:
        Mistake: an unknown option; when training begins, a task without teachers, teachers whose parameters are not
            their student's, or a policy for batch norms where there are none.
    """

    moves_teachers = True

    def __init__(
        self, rule: Rule, batch_norm: BatchNormPolicy = "own", init: Init = "copy", when: When = "after"
    ) -> None:
        for name, value, choices in (("init", init, get_args(Init)), ("when", when, get_args(When))):
            if value not in choices:
                raise Mistake(f"Smoothing: {name} must be one of {', '.join(choices)}, not {value!r}")
        self.rule = rule
        self.batch_norm: BatchNormPolicy = batch_norm
        self.init = init
        self.when = when
        self._recalibration = Recalibration()
        self.following: Following | None = None
        # The optimiser step that the next update belongs to, and what a checkpoint knew.
        self._next = 0
        self._loaded: Mapping[str, Any] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there is what the options need, and has the teachers begin; a checkpoint overwrites them."""
        if stage != "fit":
            return
        pairs = named_pairs(pl_module)
        for name, (_, teacher) in pairs.items():
            if self.batch_norm != "own" and not has_batch_norm(teacher):
                raise Mistake(
                    f"Smoothing: the teacher {name!r} has no batch norm with running statistics: leave out batch_norm, "
                    f"{self.batch_norm!r}"
                )
        smoother = self._smoother(pairs)
        if self.init == "masked":
            smoother.update(0.0, self.rule.keep, step_seed(seed_of(trainer), NO_EPOCH, -1))
        elif self.init == "copy":
            smoother.update(0.0, 0.0, 0)
            for student, teacher in pairs.values():
                theirs = dict(student.named_buffers())
                for name, buffer in teacher.named_buffers():
                    if name in theirs:
                        buffer.copy_(theirs[name])

    def _smoother(self, pairs: Mapping[str, tuple[nn.Module, nn.Module]]) -> Smoother:
        return Smoother(pairs, self.rule.unit, self.batch_norm, self.rule.keep_layers)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.following = Following("teacher", self.rule, self._smoother(named_pairs(pl_module)), trainer)
        self.following.load(self._loaded)
        self.following.announce(pl_module)
        # It may have come into a training that was going on without it.
        self._next = max(self._next, trainer.global_step)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for _, teacher in _pairs(pl_module):
            if self.batch_norm != "copy" and teacher.training == (self.batch_norm == "ema"):
                teacher.train(self.batch_norm != "ema")
        if self.when == "before" and trainer.global_step == self._next:
            self._update(self._next)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert self.following is not None
        if self.when == "after" and trainer.global_step > self._next:
            self._update(self._next)
        self.following.log(trainer, pl_module)
        if self.batch_norm == "recalibrate":
            self._recalibration.before_validation(trainer, pl_module, [teacher for _, teacher in _pairs(pl_module)])

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.batch_norm == "recalibrate":
            self._recalibration.at_the_end(trainer, pl_module, [teacher for _, teacher in _pairs(pl_module)])

    def _update(self, step: int) -> None:
        assert self.following is not None
        self.following.update(step)
        self._next = step + 1

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next, **(self.following.state() if self.following is not None else self._loaded)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next, self._loaded = state_dict["next"], state_dict


def named_pairs(pl_module: LightningModule) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Students and teachers of a task, by the teacher's name in it.

    Raises:
        Mistake: there are none.
    """
    names = {module: name for name, module in pl_module.named_modules()}
    pairs = {names.get(teacher, "teacher"): (student, teacher) for student, teacher in _pairs(pl_module)}
    if not pairs:
        raise Mistake(
            f"Smoothing: {type(pl_module).__name__} has no teacher; AveragedWeights follows the weights of any task"
        )
    return pairs


def seed_of(trainer: Trainer) -> int:
    """The run's seed, which `StepSeed` has; 0 for a run without."""
    seeds = (each.seed for each in trainer.callbacks if isinstance(each, StepSeed))  # type: ignore[attr-defined]
    return next(seeds, None) or 0


def _pairs(pl_module: LightningModule) -> list[tuple[nn.Module, nn.Module]]:
    return pl_module.teacher_pairs() if isinstance(pl_module, Task) else []


def _over_steps(schedule: Schedule | None, base: float, trainer: Trainer) -> Callable[[int], float]:
    if schedule is None:
        return lambda step: base
    clock = Clock(trainer)
    if clock.total_steps is None:
        raise Mistake("smoothing: a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
    table = torch.from_numpy(schedule.table(base, clock.steps_per_epoch, clock.total_steps)).tolist()
    return lambda step: table[min(step, len(table) - 1)]


def _nowhere(value: float) -> None:
    """What changes is asked for where it is used."""
