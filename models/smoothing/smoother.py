"""Teachers that follow their students by a smoothing rule."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.mistakes import Mistake
from models.smoothing.rules import effective_momentum, moving_average, spatial_temporal
from models.smoothing.units import Unit, Units

BatchNormPolicy = Literal["own", "copy", "ema", "recalibrate"]


class Smoother:
    """Moves teachers after their students, parameter by parameter of the same name.

    | batch norm | running statistics, and all other buffers, of the teacher |
    |---|---|
    | `own` | are left alone: the teacher's own forward passes in training mode move them, as published |
    | `copy` | are the student's |
    | `ema` | are averaged with the effective momentum that the weights beside them have (arXiv 2101.08482) |
    | `recalibrate` | are left alone, and whoever trains estimates them anew before an evaluation |

    Args:
        pairs: student and teacher, by the teacher's name.
        unit: what is renewed or kept as a whole.
        batch_norm: a policy of the table.
        keep: keep probability of the parameters whose names contain a text, in place of the common one; the first text
            that fits counts.

    Raises:
        Mistake: a parameter or buffer of a teacher that its student does not have, or has in another shape; a text that
            no name contains.
    """

    def __init__(
        self,
        pairs: Mapping[str, tuple[nn.Module, nn.Module]],
        unit: Unit = "tensor",
        batch_norm: BatchNormPolicy = "own",
        keep: Mapping[str, float] | None = None,
    ) -> None:
        if batch_norm not in get_args(BatchNormPolicy):
            raise Mistake(f"batch_norm is one of {', '.join(get_args(BatchNormPolicy))}, not {batch_norm!r}")
        self.batch_norm = batch_norm
        self.names: list[str] = []
        self.teacher: list[Tensor] = []
        self.student: list[Tensor] = []
        # Those that are averaged, by a keep probability of their own or the common one, and those that are copied.
        self._averaged: dict[float | None, list[tuple[Tensor, Tensor]]] = {}
        self._copied: list[tuple[Tensor, Tensor]] = []
        for name, (student, teacher) in pairs.items():
            theirs, its = dict(student.named_parameters()), dict(teacher.named_parameters())
            _check_names(name, theirs, its)
            self.names += [f"{name}.{each}" if name else each for each in its]
            self.teacher += list(its.values())
            self.student += [theirs[each] for each in its]
            if batch_norm in ("copy", "ema"):
                given, buffers = dict(student.named_buffers()), dict(teacher.named_buffers())
                _check_names(name, given, buffers)
                for each, buffer in buffers.items():
                    own = _first(keep or {}, f"{name}.{each}" if name else each)
                    averaged = batch_norm == "ema" and buffer.is_floating_point()
                    where = self._averaged.setdefault(own, []) if averaged else self._copied
                    where.append((buffer, given[each]))
        self.units = Units(unit, self.names, self.teacher)
        self._keep_of = [_first(keep or {}, name) for name in self.names]
        for text in keep or {}:
            if not any(text in name for name in self.names):
                raise Mistake(f"keep: no parameter of a teacher has {text!r} in its name")
        layers = [_layer(name) for name in self.names]
        self._order = {layer: i for i, layer in enumerate(dict.fromkeys(layers))}
        device = self.units.device
        self._layer_of = torch.tensor([self._order[layers[i]] for i in self.units.watched_of], device=device)
        self._sizes = torch.bincount(self._layer_of, minlength=len(self._order))
        # Updates since each watched unit was renewed, and whether it was by the last one.
        self.ages = torch.zeros(len(self._layer_of), dtype=torch.int32, device=device)
        self.renewed = torch.ones(len(self._layer_of), dtype=torch.bool, device=device)

    @torch.no_grad()
    def update(self, momentum: float, keep: float, seed: int) -> None:
        """Moves every teacher one step after its student.

        Args:
            momentum: m.
            keep: p of what has none of its own.
            seed: of the draws: a function of the step, the same on all processes.
        """
        keeps = [keep if own is None else own for own in self._keep_of]
        student = self._in_its_precision(self.student, self.teacher)
        if not any(keeps):
            moving_average(self.teacher, student, momentum)
            self.renewed.fill_(momentum < 1.0)
        elif momentum == 1.0:
            self.renewed.fill_(False)
        else:
            seen = []
            for choice in self.units.choices(keeps, seed):
                those = choice.tensors
                spatial_temporal(self.teacher[those], student[those], choice.chosen, momentum)
                seen.append(choice.watched)
            self.renewed = torch.cat(seen)
        self.ages.add_(1).masked_fill_(self.renewed, 0)
        rates = [
            (buffers, effective_momentum(keep if own is None else own, momentum))
            for own, buffers in self._averaged.items()
        ]
        for buffers, rate in (*rates, (self._copied, 0.0)):
            its, theirs = ([pair[i] for pair in buffers] for i in range(2))
            moving_average(its, self._in_its_precision(theirs, its), rate)

    @staticmethod
    def _in_its_precision(student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        """A teacher may be finer than its student, such as an average in float32 of weights in bfloat16."""
        return [theirs.to(its.dtype) for theirs, its in zip(student, teacher, strict=True)]

    @property
    def layers(self) -> list[str]:
        """Layers by name, in their order."""
        return list(self._order)

    def by_layer(self, values: Tensor) -> dict[str, Tensor]:
        """Means of watched units, such as `renewed` or `ages`, over the layers that they are of.

        Layers are what the names say up to the first number, such as `teacher.blocks.3`.

        Args:
            values: one for each watched unit.
        """
        sums = torch.zeros(len(self._order), device=values.device).index_add_(0, self._layer_of, values.float())
        return dict(zip(self._order, (sums / self._sizes).unbind(), strict=True))

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Norm of what the weights of teachers and students differ by, as a share of the students' norm."""
        student = self._in_its_precision(self.student, self.teacher)
        differences = torch._foreach_sub(self.teacher, student)
        norms = [torch.stack(torch._foreach_norm(each)).norm() for each in (list(differences), student)]
        return norms[0] / norms[1]


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a network has batch norms with running statistics."""
    return any(isinstance(each, _BatchNorm) and each.track_running_stats for each in module.modules())


def _check_names(pair: str, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
    where = f"of the teacher {pair!r}" if pair else "of the average"
    missing = [name for name in teacher if name not in student]
    if missing:
        raise Mistake(f"smoothing pairs parameters by name, and the student has no {_some(missing)} {where}")
    for name, its in teacher.items():
        if its.shape != student[name].shape:
            shapes = f"{tuple(its.shape)} and {tuple(student[name].shape)}"
            raise Mistake(f"smoothing: {name} {where} and its student's have different shapes, {shapes}")


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first(values: Mapping[str, float], name: str) -> float | None:
    return next((value for text, value in values.items() if text in name), None)


def _layer(name: str) -> str:
    module = name.rpartition(".")[0] or name
    match = re.match(r"(.*?\.)??\d+(?=\.|$)", module)
    return match.group() if match else module
