"""A number that changes while a network trains, such as the temperature of its gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.internals import Clock
from lightning_modules.optimization import Quantity
from lightning_modules.schedules import Schedule
from models.mistakes import Mistake

SHAPES = ("linear", "cosine", "exponential", "steps")


class Annealing(Callback):
    """Moves a scalar buffer of some layers from one value to another.

    The value is a function of the optimiser step alone, so a resumed run goes on exactly where it stopped; and as it
    is a buffer, it is in the checkpoint, and evaluation uses the value of the last training step.

    With p the part of `begin` to `end` that is over: `linear` start + (stop - start) p; `cosine`
    stop + (start - stop) (1 + cos(pi p)) / 2; `exponential` start (stop / start)^p; `steps` like linear, but moving
    only at the `milestones`, each an equal part of the way.

    Args:
        buffer: name of the scalar buffer, such as `temperature`.
        start: first value.
        stop: last value; None with a `schedule`.
        layers: which layers have it: a pattern for their dotted names in the network or for their class names, such
            as `*`, `stages.2.*` or `GumbelSelection`.
        shape: `linear`, `cosine`, `exponential` or `steps`.
        unit: whether it changes every optimiser `step`, or stays the same for an `epoch`.
        begin: epoch at which it starts to move; fractions are allowed.
        end: epoch at which it has arrived; by default the end of the training.
        milestones: epochs at which `steps` moves.
        schedule: the values instead, relative to `start`, such as `lightning_modules.schedules.SpanTemperature`.

    Raises:
        Mistake: an option out of its range; at the start of the training, a pattern that fits no layer, or a buffer
            that the layers do not have. The message lists what there is.
    """

    def __init__(
        self,
        buffer: str,
        start: float,
        stop: float | None = None,
        layers: str = "*",
        shape: Literal["linear", "cosine", "exponential", "steps"] = "linear",
        unit: Literal["step", "epoch"] = "step",
        begin: float = 0.0,
        end: float | None = None,
        milestones: Sequence[float] = (),
        schedule: Schedule | None = None,
    ) -> None:
        if (stop is None) != (schedule is not None):
            raise Mistake("Annealing: give either stop, to which the value moves, or a schedule")
        if shape not in SHAPES:
            raise Mistake(f"Annealing: shape must be one of {', '.join(SHAPES)}, not {shape!r}")
        if unit not in ("step", "epoch"):
            raise Mistake(f"Annealing: unit must be step or epoch, not {unit!r}")
        if shape == "exponential" and stop is not None and not start * stop > 0:
            raise Mistake(f"Annealing: exponential needs {start=} and {stop=} of the same sign, neither zero")
        if (shape == "steps") != bool(milestones):
            raise Mistake("Annealing: milestones are epochs for shape steps, which needs at least one")
        if begin < 0 or (end is not None and end <= begin):
            raise Mistake(f"Annealing: begin and end must be epochs with 0 <= begin < end, not {begin} and {end}")
        self.buffer = buffer
        self.start = start
        self.stop = start if stop is None else stop
        self.layers = layers
        self.shape = shape
        self.unit = unit
        self.begin = begin
        self.end = end
        self.milestones = milestones
        self.schedule = schedule

    def value(self, epoch: float, epochs: float) -> float:
        """The value at a point of the training.

        Args:
            epoch: epochs since its start, with a fraction.
            epochs: epochs of the whole training.
        """
        if self.shape == "steps":
            passed = sum(epoch >= milestone for milestone in self.milestones)
            return self.start + (self.stop - self.start) * passed / len(self.milestones)
        end = epochs if self.end is None else self.end
        p = min(max((epoch - self.begin) / (end - self.begin), 0.0), 1.0) if end > self.begin else 1.0
        if self.shape == "exponential":
            return self.start * (self.stop / self.start) ** p
        if self.shape == "cosine":
            return self.stop + (self.start - self.stop) * (1 + math.cos(math.pi * p)) / 2
        return self.start + (self.stop - self.start) * p

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses layers and buffers that do not exist before anything runs."""
        if stage == "fit":
            find_buffers(pl_module.network, self.layers, self.buffer)  # type: ignore[arg-type]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the buffers where they are now, and has the task change them from step to step."""
        buffers = find_buffers(pl_module.network, self.layers, self.buffer)  # type: ignore[arg-type]
        clock = Clock(trainer)
        per_epoch, total = clock.steps_per_epoch, float(trainer.estimated_stepping_batches)
        if self.schedule is not None and math.isinf(total):
            raise Mistake("Annealing: a schedule needs a training with an end; set trainer.max_epochs or max_steps")

        table = None if self.schedule is None else self.schedule.table(self.start, per_epoch, int(total))

        def at(step: int) -> float:
            if table is not None:
                return float(table[min(step, len(table) - 1)])
            epoch = step / per_epoch
            return self.value(math.floor(epoch) if self.unit == "epoch" else epoch, total / per_epoch)

        def put(value: float) -> None:
            for buffer in buffers:
                buffer.fill_(value)

        quantities: dict[str, Quantity] = pl_module.quantities  # type: ignore[assignment]
        quantities[self.buffer] = Quantity(at, put)


def find_buffers(network: nn.Module, layers: str, name: str) -> list[Tensor]:
    """The scalar buffers of a name in the layers that a pattern fits.

    Raises:
        Mistake: no layer fits, or none of those that fit has such a buffer.
    """
    scalars = {
        module_name: {key: value for key, value in module.named_buffers(recurse=False) if value.ndim == 0}
        for module_name, module in network.named_modules()
    }
    fitting = [
        module_name
        for module_name, module in network.named_modules()
        if fnmatch(module_name, layers) or fnmatch(type(module).__name__, layers)
    ]
    found = [scalars[module_name][name] for module_name in fitting if name in scalars[module_name]]
    if found:
        return found
    having = sorted(module_name for module_name, buffers in scalars.items() if name in buffers)
    if not fitting:
        known = having or sorted(module_name for module_name in scalars if module_name)
        raise Mistake(f"Annealing: no layer is called {layers!r}; there are {_some(known)}")
    there = sorted({key for module_name in fitting for key in scalars[module_name]} - {"num_batches_tracked"})
    have = f"they have {_some(there)}" if there else "they have none"
    elsewhere = f"; {name!r} is in {_some(having)}" if having else ""
    raise Mistake(f"Annealing: the layers {layers!r} have no scalar buffer {name!r}: {have}{elsewhere}")


def _some(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name or "the network itself" for name in names[:limit]) + more
