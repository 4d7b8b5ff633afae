"""How a training turns the weights that norms follow, next to what theory says, and two ways to take a hand in it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.motion_record import MotionRecord, Step
from lightning_modules.findings import told_by_first
from lightning_modules.internals import Clock
from lightning_modules.optimization import JointOptimizer, Quantity
from lightning_modules.schedules import Constant, Schedule
from lightning_modules.task import Task
from models.mistakes import Mistake
from models.spherical_motion import (
    Evidence,
    Invariant,
    Setting,
    Theory,
    equilibrium_angle,
    remarks,
    rescaling,
    setting_of,
    time_constant,
    turned,
)
from models.spherical_motion.invariance import LOOKS
from models.spherical_motion.measuring import Measurement, Motion, angles_between, copies
from models.spherical_motion.schedule import drop_at

Granularity = Literal["layer", "filter"]


class SphericalMotion(Callback):
    """Measures how far each step turns the scale-invariant weights of a task, and compares it with theory.

    Which weights these are is found by the gradients of the first steps (`models.spherical_motion.invariance`),
    without a pass of its own. From then on every step that is logged is measured, the optimiser step that is, however
    many batches and processes it gathers: before clipping, after gradients are averaged. The training is the same with
    it, bit for bit, unless it is asked to take a hand.

    Logs of each layer, as `train/smd_<what>/<layer>`: `angle`, the angular update in radians, `prediction`, what
    theory says of the learning rate, decay and momentum of the step, `norm`, `equilibrium_norm` (of the mean over the
    last measurements), `unit_gradient`, `cos` of weight and gradient, `effective_lr`; with momentum `momentum_norm`;
    by filter `angle_low` and `angle_high`, the angles that one filter in twenty is below and above. Of all layers
    together, means over the last measurements: `train/smd_angle`, `train/smd_ratio` (angle by prediction) and
    `train/smd_travelled`. Says once in words what was found, and which drops of a schedule leave no time for a new
    equilibrium.

    Reference: "Spherical Motion Dynamics", arXiv 2006.08419.

    Args:
        targets: patterns of the names of parameters that are looked at.
        granularity: `filter` logs and tabulates the parts of each layer that are invariant by themselves, too: filters
            before a batch norm, groups of them before a group norm.
        theory: formulas that are to hold for an optimiser; by default what the optimiser's class says.
        rescale: whether weights are brought to the new equilibrium where the learning rate drops, as in the paper: for
            SGD divided by the fourth root of what it is divided by. The network's function and momentum stay.
        angular_rate: the angle, in radians, that each step is made to turn every invariant part by, at the length that
            it has; the function that a step arrives at depends on the direction alone. None leaves steps as they are.
        angular_schedule: the rate over the optimiser steps, relative to `angular_rate`.
        span: steps that `smd_travelled` measures the angle over: k small steps next to a large one.

    Raises:
        Mistake: an option out of its range; when training begins, something that is no `Task`; once weights are known,
            none to take a hand in, or no theory to rescale by.
    """

    def __init__(
        self,
        targets: Sequence[str] = ("*",),
        granularity: Granularity = "layer",
        theory: Theory | None = None,
        rescale: bool = False,
        angular_rate: float | None = None,
        angular_schedule: Schedule | None = None,
        span: int = 1,
    ) -> None:
        for name, value, choices in (
            ("granularity", granularity, get_args(Granularity)),
            ("theory", theory, (*get_args(Theory), None)),
        ):
            if value not in choices:
                raise Mistake(f"SphericalMotion: {name} must be one of {', '.join(map(str, choices))}, not {value!r}")
        if angular_rate is not None and not 0 < angular_rate < math.pi / 2:
            raise Mistake(f"SphericalMotion: angular_rate is an angle between 0 and pi / 2, not {angular_rate}")
        if angular_rate is None and angular_schedule is not None:
            raise Mistake("SphericalMotion: angular_schedule is relative to angular_rate, which is missing")
        if angular_rate is not None and rescale:
            raise Mistake("SphericalMotion: weights whose angular rate is held need no rescale: give one of them")
        if span < 1:
            raise Mistake(f"SphericalMotion: span counts optimiser steps, from 1, not {span}")
        self.targets, self.granularity, self.theory = list(targets), granularity, theory
        self.rescale, self.angular_rate, self.angular_schedule = rescale, angular_rate, angular_schedule
        self.span = span
        # Known once the gradients of the first steps have been seen.
        self.weights: list[Invariant] | None = None
        # What was measured; steps and factors of rescaling; what was said.
        self.record = MotionRecord()
        self.factors: list[list[float]] = []
        self.said: list[str] = []
        # The last measurement of the blocks of each weight, and what held for it.
        self.last: Motion | None = None
        self.settings: list[Setting] = []
        self._next = 0
        self._evidence: Evidence | None = None
        self._measurement: Measurement | None = None
        self._started: list[list[Tensor]] | None = None
        self._held: list[list[Tensor]] | None = None
        self._rate: Callable[[int], float] | None = None
        self._loaded: dict[str, Any] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Task):
            raise Mistake(f"SphericalMotion: {type(pl_module).__name__} is no lightning_modules.Task")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self._trainer = trainer
        self._parameters = {name: each for name, each in pl_module.named_parameters() if each.requires_grad}
        self._evidence = Evidence(pl_module, lambda name: any(fnmatch(_short(name), each) for each in self.targets))
        self._places = _places(trainer.optimizers, self._parameters)
        self._rates = _rates(pl_module, self._parameters)
        self._next = max(self._next, trainer.global_step)
        self._resume(pl_module.device)
        if self.angular_rate is not None:
            clock, schedule = Clock(trainer), self.angular_schedule or Constant()
            table = schedule.table(self.angular_rate, clock.steps_per_epoch, clock.total_steps or 1).tolist()
            rate = self._rate = lambda step: table[min(step, len(table) - 1)]
            pl_module.quantities["smd_angular_rate"] = Quantity(rate, _nowhere)
            for optimizer in trainer.optimizers:
                optimizer.register_step_post_hook(self._turn)

    # Which weights there are.

    def _decide(self) -> None:
        assert self._evidence is not None
        # The same on all processes, as gradients are; taking a hand differently would tear them apart.
        self.weights = told_by_first(self._evidence.found())
        self._evidence = None
        if not self.weights and (self.rescale or self._rate):
            raise Mistake(
                f"SphericalMotion: none of the weights {', '.join(self.targets)} is scale-invariant, so there is "
                "nothing to rescale or to turn: are there norms, with statistics of the batch?"
            )
        settings = [self._setting(each) for each in self.weights]
        if self.rescale and not any(each.balances for each in settings):
            raise Mistake("SphericalMotion: rescale needs an optimiser with a theory, and weight decay: give theory")
        self._announce(settings)

    def _setting(self, weight: Invariant) -> Setting:
        optimizer, group = self._places[weight.tensors[0]]
        return setting_of(type(optimizer).__name__, group, self.theory)

    def _lr(self, weight: Invariant) -> Quantity | None:
        """The learning rate over the steps of the part that a weight is of."""
        return self._rates.get(weight.tensors[0])

    def _announce(self, settings: list[Setting]) -> None:
        assert self.weights is not None
        units = sorted({each.unit for each in self.weights})
        first = next((each for each in settings if each.balances), None)
        found = f"{len(self.weights)} weights are scale-invariant"
        found += f", by {' or '.join(units)}" if units else ": are there norms, with statistics of the batch?"
        if self._rate is not None:
            self._say(f"{found}; each step turns them by {self._rate(self._trainer.global_step):.4g}")
        elif first is None:
            why = "without weight decay" if any(each.theory != "none" for each in settings) else "with this optimiser"
            self._say(f"{found}" + (f"; {why} there is no equilibrium to predict" if units else ""))
        else:
            self._say(
                f"{found}; by the theory of {first.theory}, at a learning rate of {first.lr:g} equilibrium turns them "
                f"by {equilibrium_angle(first):.4g} a step and takes about {3 * time_constant(first):,.0f} steps"
            )
        if self._rate is None and not self.rescale:
            self._look_ahead(settings)

    def _look_ahead(self, settings: list[Setting]) -> None:
        """Says which drops of the schedule leave no time, or from where on weights cannot follow it."""
        assert self.weights is not None
        step, total = self._trainer.global_step, Clock(self._trainer).total_steps or 0
        seen = set()
        for weight, setting in zip(self.weights, settings, strict=True):
            quantity = self._lr(weight)
            if not setting.balances or quantity is None or setting in seen:
                continue
            seen.add(setting)
            scale = setting.lr / quantity.at(step)
            rates = [scale * quantity.at(i) for i in range(total)]
            for text in remarks(setting, rates):
                self._say(text)

    def _say(self, text: str) -> None:
        if text not in self.said:
            self.said.append(text)
            if self._trainer.is_global_zero:
                print(f"exp: SphericalMotion: {text}", file=sys.stderr, flush=True)

    # A step.

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step < self._next:
            return
        self._next = step + 1
        if not self.rescale or not self.weights or not step:
            return
        factors = set()
        for each in self.weights:
            quantity, setting = self._lr(each), self._setting(each)
            drop = drop_at(quantity.at, step) if quantity is not None else 1.0
            if drop > 1 and setting.balances:
                factor = rescaling(setting, drop)
                with torch.no_grad():
                    each.scale(self._parameters, torch.full((each.blocks,), factor))
                factors.add(factor)
        self.factors += [[float(step), factor] for factor in sorted(factors)]

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        clock = Clock(trainer)
        step = clock.step
        if self.weights is None:
            assert self._evidence is not None
            self._evidence.look(self._parameters, self._gradients())
            if clock.logs() and self._evidence.looks >= min(LOOKS, clock.total_steps or LOOKS):
                self._decide()
        if not self.weights:
            return
        if self._rate is not None:
            self._held = copies(self.weights, self._parameters)
        if clock.logs(step + self.span) and self.span > 1:
            self._started = copies(self.weights, self._parameters)
        if clock.logs() and trainer.is_global_zero:
            self.settings = [self._setting(each) for each in self.weights]
            found, parts = (self._gradients(), self._buffers()), self.granularity == "filter"
            self._measurement = Measurement(self.weights, self._parameters, *found, parts)

    def _gradients(self) -> dict[str, Tensor]:
        return {name: each.grad for name, each in self._parameters.items() if each.grad is not None}

    def _buffers(self) -> dict[str, Tensor]:
        found = {}
        for each in self.weights or []:
            for name in each.tensors:
                state = self._places[name][0].state.get(self._parameters[name], {})
                buffer = state.get("momentum_buffer")
                if buffer is not None:
                    found[name] = buffer
        return found

    @torch.no_grad()
    def _turn(self, *args: Any) -> None:
        """Has the step that was just taken turn each part by the rate."""
        if self._held is None or self._rate is None or not self.weights:
            return
        rate = self._rate(self._trainer.global_step)
        for each, before in zip(self.weights, self._held, strict=True):
            now = each.view(self._parameters)
            for tensor, new, old in zip(now, turned(before, now, rate, each.blocks), before, strict=True):
                if each.loose:
                    loose = torch.tensor(each.loose, device=old.device)
                    per = each.filters // each.blocks
                    rows = (loose[:, None] * per + torch.arange(per, device=old.device)).flatten()
                    new[rows] = tensor[rows]
                tensor.copy_(new)
        self._held = None

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._measurement is None:
            return
        motion, measurement, self._measurement = self._measurement.motion(), self._measurement, None
        travelled = motion.layers[:, -1]
        if self.span > 1:
            # The first measurement may come before there was so long a way.
            before = self._started or measurement.before
            travelled, self._started = angles_between(measurement.weights, before, self._parameters), None
        rows = torch.cat([motion.layers, travelled[:, None]], 1).tolist()
        # The step of a loss that was scaled too far is left out.
        if all(math.isfinite(value) for row in rows for value in row):
            self.last = motion
            self._log(pl_module, trainer.global_step, rows)

    def _log(self, task: LightningModule, step: int, rows: list[list[float]]) -> None:
        assert self.weights is not None
        held = self._rate(step - 1) if self._rate is not None else None
        steps = [
            Step(
                self.layer(weight),
                setting,
                sum(self._parameters[each].numel() for each in weight.tensors),
                equilibrium_angle(setting) if held is None else held,
                *row,
            )
            for weight, setting, row in zip(self.weights, self.settings, rows, strict=True)
        ]
        logged = self.record.add(step, steps, held is None, self.span > 1)
        if self.granularity == "filter":
            assert self.last is not None
            for each, blocks in zip(steps, self.last.blocks, strict=True):
                low, high = torch.quantile(blocks[2], torch.tensor([0.05, 0.95]).to(blocks)).tolist()
                logged |= {f"angle_low/{each.layer}": low, f"angle_high/{each.layer}": high}
        task.log_dict({f"train/smd_{name}": value for name, value in logged.items()})

    @staticmethod
    def layer(weight: Invariant) -> str:
        """What a weight is called in what is logged."""
        return _short(weight.name)

    # A checkpoint.

    @override
    def state_dict(self) -> dict[str, Any]:
        evidence = self._evidence
        weights = [
            {"name": w.name, "tensors": [*w.tensors], "blocks": w.blocks, "filters": w.filters, "turned": w.turned}
            | {"loose": [*w.loose]}
            for w in self.weights or []
        ]
        return {
            "next": self._next,
            "weights": weights if self.weights is not None else None,
            "looks": evidence.looks if evidence is not None else 0,
            "seen": {name: torch.stack(each).cpu() for name, each in evidence.seen.items() if each} if evidence else {},
            "record": self.record.state(),
            "factors": self.factors,
            "said": self.said,
            "started": [[each.cpu() for each in parts] for parts in self._started or []],
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict
        self._next = state_dict["next"]
        self.record.load(state_dict["record"])
        self.factors, self.said = state_dict["factors"], state_dict["said"]

    def _resume(self, device: torch.device) -> None:
        state, self._loaded = self._loaded, {}
        if not state:
            return
        if state["weights"] is not None:
            parts = [
                each | {"tensors": tuple(each["tensors"]), "loose": tuple(each["loose"])} for each in state["weights"]
            ]
            self.weights, self._evidence = [Invariant(**each) for each in parts], None
        elif self._evidence is not None:
            self._evidence.looks = state["looks"]
            for name, looks in state["seen"].items():
                self._evidence.seen[name] = [*looks.to(device).unbind()]
        self._started = [[each.to(device) for each in parts] for parts in state["started"]] or None


def _short(name: str) -> str:
    return name.removeprefix("network.")


def _places(optimizers: list[Any], parameters: dict[str, Any]) -> dict[str, tuple[Optimizer, dict[str, Any]]]:
    """The optimiser and the group of each parameter, by its name."""
    names = {parameter: name for name, parameter in parameters.items()}
    each_one = [
        own for one in optimizers for own in (one.optimizers.values() if isinstance(one, JointOptimizer) else [one])
    ]
    return {
        names[parameter]: (own, group)
        for own in each_one
        for group in own.param_groups
        for parameter in group["params"]
        if parameter in names
    }


def _rates(task: Task, parameters: dict[str, Any]) -> dict[str, Quantity]:
    """The learning rate over the steps of each parameter, by its name, as far as there is a schedule."""
    names = {parameter: name for name, parameter in parameters.items()}
    return {
        names[parameter]: task.quantities[key]
        for part_name, part in task.parts().items()
        if (key := "lr" if part is task.main else f"{part_name}_lr") in task.quantities
        for parameter in part.module.parameters()
        if parameter in names
    }


def _nowhere(value: float) -> None:
    """What changes is asked for where it is used."""
