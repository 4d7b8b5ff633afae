"""How the weights of a teacher fall into units that are renewed or kept as a whole, and which are renewed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal, get_args

import torch
from torch import Tensor

from models.mistakes import Mistake
from models.smoothing.rules import renewed

Unit = Literal["tensor", "layer", "channel", "element"]

# Units that are drawn at a time: few enough to stay in a processor's cache, many enough for an accelerator.
AT_A_TIME = 2**20
# Units of a tensor whose age is counted, from its beginning.
WATCHED = 4096


@dataclass
class Choice:
    """Which units of some tensors take a step.

    Args:
        tensors: positions of the tensors.
        chosen: of each tensor whether it is, or its parts that are, as zeros and ones that broadcast to it.
        watched: whether each watched unit is, boolean.
    """

    tensors: slice
    chosen: Sequence[bool] | Sequence[Tensor]
    watched: Tensor


class Units:
    """The units of some tensors, and the draws that choose among them.

    | unit | a draw for |
    |---|---|
    | `tensor` | every tensor, as published |
    | `layer` | all tensors that belong to one module |
    | `channel` | every index of the first dimension of every tensor, whose output channels they are |
    | `element` | every number |

    Draws are a function of the seed that a choice is given, and of nothing else; those of `tensor` and `layer` are made
    on the processor, where they decide, and the others where the weights are, so that nobody waits for anybody.

    Args:
        unit: what is renewed as a whole.
        names: dotted names of the tensors, whose module is what comes before the last dot.
        tensors: as many, on one device.

    Raises:
        Mistake: no such unit.
    """

    def __init__(self, unit: Unit, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        if unit not in get_args(Unit):
            raise Mistake(f"a unit of smoothing is one of {', '.join(get_args(Unit))}, not {unit!r}")
        self.unit = unit
        self.tensors = tensors
        device = tensors[0].device
        self.whole = unit in ("tensor", "layer")
        if self.whole:
            modules = [name.rpartition(".")[0] if unit == "layer" else name for name in names]
            order = {module: i for i, module in enumerate(dict.fromkeys(modules))}
            self._draw_of, self._draws_in_all = torch.tensor([order[module] for module in modules]), len(order)
            self.counts = [1] * len(tensors)
            self.device = torch.device("cpu")
        else:
            self.counts = [_parts(unit, tensor) for tensor in tensors]
            self.device = device
        # The tensor that each watched unit is of.
        self.watched_of = [i for i, count in enumerate(self.counts) for _ in range(min(count, WATCHED))]
        self._generator = torch.Generator(self.device)
        self._batches = [self._batch(start, stop) for start, stop in _batches(self.counts)]

    def choices(self, keep: Sequence[float], seed: int) -> Iterator[Choice]:
        """Draws which units take a step, for some tensors after the other, all in their order.

        Args:
            keep: keep probability of the units of each tensor.
            seed: of the draws.
        """
        self._generator.manual_seed(seed)
        if self.whole:
            draws = torch.rand(self._draws_in_all, generator=self._generator)
            chosen = renewed(draws[self._draw_of], torch.tensor(keep))
            yield Choice(slice(None), chosen.tolist(), chosen)
            return
        # Rounding the probabilities of elements up or down at random keeps them exact in the mean.
        rounding = random.Random(seed).random()
        for tensors, watched in self._batches:
            counts = self.counts[tensors]
            # Draws that become choices in place: with as many units as weights, a pass over memory is what costs.
            mask, start = self._draws(sum(counts)), 0
            for probability, run in groupby(zip(keep[tensors], counts, strict=True), key=itemgetter(0)):
                stop = start + sum(count for _, count in run)
                below = probability if self.unit == "channel" else int(probability * 2**16 + rounding) - 2**15
                mask[start:stop].ge_(below)
                start = stop
            parts = zip(mask.split(counts), self.tensors[tensors], strict=True)
            yield Choice(tensors, [part.view(self._shape(tensor)) for part, tensor in parts], mask[watched] > 0)

    def _draws(self, count: int) -> Tensor:
        """Uniform, of channels in [0, 1); of elements whole numbers of sixteen bits, at a quarter of the cost."""
        if self.unit == "channel":
            return torch.rand(count, generator=self._generator, device=self.device)
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=self.device)
        return words.random_(-(2**63), None, generator=self._generator).view(torch.int16)[:count].float()

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        if self.unit == "element" or not tensor.ndim:
            return tuple(tensor.shape)
        return (len(tensor), *[1] * (tensor.ndim - 1))

    def _batch(self, start: int, stop: int) -> tuple[slice, Tensor]:
        positions, first = [], 0
        for count in self.counts[start:stop]:
            positions.append(torch.arange(first, first + min(count, WATCHED)))
            first += count
        return slice(start, stop), torch.cat(positions).to(self.device)


def _parts(unit: Unit, tensor: Tensor) -> int:
    return len(tensor) if unit == "channel" and tensor.ndim else (1 if unit == "channel" else tensor.numel())


def _batches(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of tensors, each of a tensor or of at most so many units."""
    start = units = 0
    for i, count in enumerate(counts):
        if i > start and units + count > AT_A_TIME:
            yield start, i
            start, units = i, 0
        units += count
    yield start, len(counts)
