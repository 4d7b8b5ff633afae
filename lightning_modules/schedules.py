"""Learning-rate schedules as tables: one value an optimiser step, known before training starts.

A table depends on nothing but its arguments, so that a resumed run continues on exactly the same values.
"""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_modules.warmup import Shortened, steps_of
from models.mistakes import Mistake


class Schedule(ABC):
    """What every schedule here offers."""

    @abstractmethod
    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps].

        Args:
            base: Value that the schedule is relative to, such as the peak learning rate.
            steps_per_epoch: Optimiser steps of an epoch (batches, divided by the accumulated ones).
            total_steps: Optimiser steps of the whole training.

        Raises:
            Mistake: Training is empty. A warm-up that is as long as the training is shortened, which a warning says.
        """


@dataclass
class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine towards `min_lr`.

    The warm-up includes both ends, so the base value occurs twice in a row; the cosine never quite arrives:
    `min_lr + (base - min_lr) / 2 * (1 + cos(pi * i / n))`, i = 0 .. n - 1, n the steps after the warm-up.
    With no warm-up it also serves for a weight decay that moves from `base` to `min_lr`, downwards or upwards.

    Reference: "A ConvNet for the 2020s", arXiv 2201.03545, appendix A, and its published training code. That of timm,
    which "Training data-efficient image transformers" (arXiv 2012.12877) has, is `whole` and `by_epoch`.

    Args:
        warmup_epochs: Length of the warm-up in epochs.
        warmup_steps: Length in optimiser steps instead of epochs.
        min_lr: Value at the end of the cosine.
        warmup_lr: Value at the start of the warm-up.
        whole: Whether the cosine begins with the training, and the warm-up takes the place of its beginning: a line to
            the base value, which the first step after it would have, had the cosine not fallen by then.
        by_epoch: Whether the value changes only where an epoch begins.
        cooldown_epochs: Epochs at the end with `min_lr`.
        steady_warmup: Whether the base value occurs once: the warm-up is a line towards it, which the first step after
            it has.
        cosine_epochs: Epochs that the cosine takes to `min_lr`, where it goes on beyond the training or ends before it;
            by default what the warm-up leaves.
    """

    warmup_epochs: float = 0.0
    warmup_steps: int | None = None
    min_lr: float = 0.0
    warmup_lr: float = 0.0
    whole: bool = False
    by_epoch: bool = False
    cooldown_epochs: float = 0.0
    steady_warmup: bool = False
    cosine_epochs: float | None = None

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        # Refuses impossible lengths, and shortens what would take all of the training.
        warmup = len(_warmup(self.warmup_epochs, self.warmup_steps, base, steps_per_epoch, total_steps))
        if self.by_epoch and steps_per_epoch > 1:
            if self.warmup_steps is not None:
                raise Mistake("a schedule by epochs has warmup_epochs, not warmup_steps")
            with warnings.catch_warnings(action="ignore", category=Shortened):  # said of the steps above
                epochs = self.table(base, 1, -(-total_steps // steps_per_epoch))
            return np.repeat(epochs, steps_per_epoch)[:total_steps]
        before = 0 if self.whole else warmup
        cooldown = steps_of(self.cooldown_epochs, None, steps_per_epoch, total_steps, "cooldown", before)
        cosine_steps = total_steps - cooldown - before
        length = cosine_steps if self.cosine_epochs is None else max(1, round(self.cosine_epochs * steps_per_epoch))
        turned = np.minimum(np.arange(cosine_steps) / length, 1.0)
        falling = 0.5 * (base - self.min_lr) * (1 + np.cos(np.pi * turned))
        table = np.concatenate([self.min_lr + falling, np.full(cooldown, self.min_lr)])
        rising = np.linspace(self.warmup_lr, base, warmup, endpoint=not (self.whole or self.steady_warmup))
        return np.concatenate([rising, table[warmup:] if self.whole else table])


@dataclass
class MultiStep(Schedule):
    """Linear warm-up from 0, and a multiplication by `gamma` at each milestone.

    Args:
        milestones: Epochs after which the value drops; fractions of an epoch are allowed.
        gamma: Factor of each drop, or of all of them one by one.
        warmup_epochs: Length of the warm-up in epochs.
        warmup_steps: Length in optimiser steps instead of epochs.
        warmup_factor: Factor of the first step; it rises linearly to 1, which the first step after the warm-up has. By
            default it rises from 0, and the last step of the warm-up has 1.
        shares: Further milestones, as shares of the training, rounded down to whole epochs: a training of another
            length keeps their shape.
    """

    milestones: list[float] = field(default_factory=list)
    gamma: float | list[float] = 0.1
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None
    warmup_factor: float | None = None
    shares: list[float] = field(default_factory=list)

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        warmup = _warmup(self.warmup_epochs, self.warmup_steps, 1.0, steps_per_epoch, total_steps)
        epochs = total_steps // steps_per_epoch
        milestones = [*self.milestones, *(int(share * epochs) for share in self.shares)]
        edges = np.sort([round(milestone * steps_per_epoch) for milestone in milestones])
        drops = np.searchsorted(edges, np.arange(total_steps), side="right")
        if isinstance(self.gamma, list):
            if len(self.gamma) != len(edges):
                raise Mistake(f"{len(self.gamma)} factors for {len(edges)} milestones: give one each, or one for all")
            factors = np.cumprod([1.0, *self.gamma])[drops]
        else:
            factors = self.gamma ** drops.astype(np.float64)
        table = np.asarray(base * factors, np.float64)
        if self.warmup_factor is not None:
            warmup = np.linspace(self.warmup_factor, 1.0, len(warmup), endpoint=False)
        table[: len(warmup)] *= warmup
        return table


@dataclass
class Staircase(Schedule):
    """Linear warm-up from 0, and a multiplication by `gamma` every so many epochs, counted from the start.

    Args:
        every: Epochs between two drops; fractions of an epoch are allowed.
        gamma: Factor of each drop.
        warmup_epochs: Length of the warm-up in epochs.
        warmup_steps: Length in optimiser steps instead of epochs.
        steady_warmup: Whether the warm-up is a line towards the base value, which the first step after it would have,
            were it not for the drops by then. By default they count within the warm-up, too, and its last step has
            what they leave.
    """

    every: float = 2.4
    gamma: float = 0.97
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None
    steady_warmup: bool = False

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        warmup = _warmup(self.warmup_epochs, self.warmup_steps, 1.0, steps_per_epoch, total_steps)
        if self.every <= 0:
            raise Mistake(f"a staircase drops every so many epochs, above 0, not {self.every}")
        drops = np.floor(np.arange(total_steps) / (self.every * steps_per_epoch))
        table: NDArray[np.float64] = base * self.gamma**drops
        if self.steady_warmup:
            table[: len(warmup)] = np.linspace(0.0, base, len(warmup), endpoint=False)
        else:
            table[: len(warmup)] *= warmup
        return table


@dataclass
class Poly(Schedule):
    """Falls to 0 by a power of what is left: `base * (1 - step / steps)^power`, from the first step on.

    A warm-up multiplies it by a factor that rises linearly from `warmup_factor` to 1, which the first step after the
    warm-up has.

    Reference: "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv 1706.05587, section 4.1.

    Args:
        power: 0.9 as published.
        warmup_epochs: Length of the warm-up in epochs.
        warmup_steps: Length in optimiser steps instead of epochs.
        warmup_factor: Factor of the first step.
    """

    power: float = 0.9
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None
    warmup_factor: float = 0.0

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        warmup = len(_warmup(self.warmup_epochs, self.warmup_steps, 1.0, steps_per_epoch, total_steps))
        steps = np.arange(total_steps)
        table: NDArray[np.float64] = base * (1 - steps / total_steps) ** self.power
        table[:warmup] *= self.warmup_factor + (1 - self.warmup_factor) * steps[:warmup] / max(1, warmup)
        return table


@dataclass
class OneCycle(Schedule):
    """Half a cosine up to the base value, and half a cosine down to nearly nothing, over the whole training.

    Turning where the value is smallest serves for a momentum that falls while the learning rate rises: `div_factor`
    below 1, and `final_div_factor` 1.

    Reference: "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", arXiv 1708.07120;
    values are those of `torch.optim.lr_scheduler.OneCycleLR`, which has these names.

    Args:
        pct_start: Share of the training that leads to the base value.
        div_factor: The first step has the base value over this.
        final_div_factor: The last step has the first one's value over this.
    """

    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        if not 0 < self.pct_start < 1 or self.div_factor <= 0 or self.final_div_factor <= 0:
            raise Mistake(
                "a cycle turns after a share of the training between 0 and 1 and divides by factors above 0, not "
                f"pct_start {self.pct_start}, div_factor {self.div_factor} and final_div_factor {self.final_div_factor}"
            )
        last, turn = total_steps - 1, self.pct_start * total_steps - 1
        if turn <= 0:
            raise Mistake(
                f"a cycle that turns after {self.pct_start:g} of {total_steps} steps has no step to rise in: raise "
                "pct_start, or train longer"
            )
        first = base / self.div_factor
        steps = np.arange(total_steps)
        rising = base + 0.5 * (first - base) * (1 + np.cos(np.pi * steps / turn))
        end = first / self.final_div_factor
        falling = end + 0.5 * (base - end) * (1 + np.cos(np.pi * (steps - turn) / (last - turn)))
        return np.where(steps <= turn, rising, falling)


@dataclass
class CosineArc(Schedule):
    """The beginning of a cosine, which ends above 0: `base * cos(arc * pi * step / steps)`.

    Reference: "FixMatch", arXiv 2001.07685, section 2.4.

    Args:
        arc: Share of half a turn; 7/16 as published.
        warmup_epochs: Length of a warm-up from 0 in epochs, before the cosine begins.
        warmup_steps: Length in optimiser steps instead of epochs.
    """

    arc: float = 7 / 16
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        warmup = len(_warmup(self.warmup_epochs, self.warmup_steps, base, steps_per_epoch, total_steps))
        steps = total_steps - warmup
        falling = base * np.cos(self.arc * np.pi * np.arange(steps) / steps)
        return np.concatenate([np.linspace(0.0, base, warmup, endpoint=False), falling])


@dataclass
class Constant(Schedule):
    """Linear warm-up from 0, then one value.

    Args:
        warmup_epochs: Length of the warm-up in epochs.
        warmup_steps: Length in optimiser steps instead of epochs.
    """

    warmup_epochs: float = 0.0
    warmup_steps: int | None = None

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        warmup = _warmup(self.warmup_epochs, self.warmup_steps, base, steps_per_epoch, total_steps)
        return np.concatenate([warmup, np.full(total_steps - len(warmup), base)])


@dataclass
class StairWarmup(Schedule):
    """Climbs three stairs to the base value, and is multiplied by `gamma` at each milestone.

    With W the epochs of the warm-up, the value is `base / (W + 1)` for the first (W + 1) / 4 epochs, twice that up to
    (W + 1) / 2, three times that up to 3 (W + 1) / 4, and then `base`. With W = 3 a stair is an epoch; below, the third
    one is above the base value, as published.

    Reference: "TRAR: Routing the Attention Spans in Transformer for Visual Question Answering", ICCV 2021, and MCAN,
    arXiv 1906.10770.

    Args:
        warmup_epochs: W.
        milestones: Epochs after which the value drops.
        gamma: Factor of each drop.
        batches_per_epoch: Samples over the batch size, a fraction where the last batch is left out: stairs are measured
            by it, as published, and not by the steps of an epoch.
    """

    warmup_epochs: float = 3.0
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.2
    batches_per_epoch: float | None = None

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        if self.warmup_epochs < 0:
            raise Mistake(f"a warm-up cannot last {self.warmup_epochs} epochs")
        table = MultiStep(self.milestones, self.gamma).table(base, steps_per_epoch, total_steps)
        per_epoch = self.batches_per_epoch or steps_per_epoch
        whole = self.warmup_epochs + 1
        start = 0
        for stair in (1, 2, 3):
            end = int(stair * per_epoch * whole / 4)
            table[start:end] *= stair / whole
            start = end
        return table


@dataclass
class SpanTemperature(Schedule):
    """The temperature of hard routing, one value an epoch, by one of the three published policies.

    With e the epoch from 0 on, of E, and W the epochs of the warm-up, 0 is a line from the base value to `last` at the
    last epoch; 1 a line from the base value to 1 at W, and from there on `1 - (e - W) / (E - W)`; 2 is
    `1 - (e - E) / (W + 1)` before W and `last` from there on, whatever the base value is.

    Reference: "TRAR: Routing the Attention Spans in Transformer for Visual Question Answering", ICCV 2021.

    Args:
        policy: 0, 1 or 2.
        warmup_epochs: W, of policies 1 and 2.
        last: The lowest value, of policies 0 and 2.
    """

    policy: Literal[0, 1, 2] = 0
    warmup_epochs: int = 3
    last: float = 0.1

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        epochs, warmup = -(-total_steps // steps_per_epoch), self.warmup_epochs
        if self.policy not in (0, 1, 2) or (self.policy and not 0 < warmup < epochs):
            raise Mistake(
                f"a temperature follows policy 0, 1 or 2, with 1 to {epochs - 1} epochs of warm-up in a training of "
                f"{epochs}, not policy {self.policy} with {warmup}"
            )
        epoch = np.arange(epochs)
        if self.policy == 0:
            values = base - (base - self.last) * epoch / max(1, epochs - 1)
        elif self.policy == 1:
            falling = base - (base - 1) * epoch / warmup
            values = np.where(epoch < warmup, falling, 1 - (epoch - warmup) / (epochs - warmup))
        else:
            values = np.where(epoch < warmup, 1 - (epoch - epochs) / (warmup + 1), self.last)
        return np.repeat(values, steps_per_epoch)[:total_steps]


@dataclass
class AverageWarmup(Schedule):
    """The momentum of a young moving average, which soon forgets the weights that it began with.

    `min(base, (n + ahead) / (n + behind))` at the n-th step, counted from 1.

    Args:
        ahead, behind: 0 and 1 make the plain mean of the first weights, as Mean Teacher (arXiv 1703.01780) has it; 1
            and 10 are TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """

    ahead: float = 0.0
    behind: float = 1.0

    def table(self, base: float, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Values of all optimiser steps, [total_steps] (see `Schedule.table`)."""
        if not 0 <= self.ahead < self.behind:
            raise Mistake(f"an average warms up with 0 <= ahead < behind, not {self.ahead} and {self.behind}")
        steps = np.arange(1, total_steps + 1)
        return np.minimum(base, (steps + self.ahead) / (steps + self.behind))


def _warmup(
    epochs: float, steps: int | None, base: float, steps_per_epoch: int, total_steps: int
) -> NDArray[np.float64]:
    return np.linspace(0.0, base, steps_of(epochs, steps, steps_per_epoch, total_steps))
