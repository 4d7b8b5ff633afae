"""What every term of a distillation has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from models.distillation.seen import Seen
from models.mistakes import Mistake


class Term(nn.Module, ABC):
    """A scalar loss of what a student and its teacher made of the same images.

    Its parameters, such as those of an adapter, are trained beside the student's.

    Args:
        weight: What the loss is multiplied by.
        student: Layers of the student whose features it reads, by their names.
        teacher: Layers of the teacher; the student's by default.

    Attributes:
        names: Of its losses, where it has several.
        step: Optimiser steps that are done; set before each call.
        total_steps: Of the whole training.
        observed: What is worth knowing of the last call beside its losses, scalars by name.
    """

    names: tuple[str, ...] = ()

    def __init__(self, weight: float = 1.0, student: Sequence[str] = (), teacher: Sequence[str] | None = None) -> None:
        super().__init__()
        if not weight > 0:
            raise Mistake(f"{type(self).__name__}: its weight is positive, not {weight:g}")
        self.weight = weight
        self.student_layers = list(student)
        self.teacher_layers = list(student if teacher is None else teacher)
        self.step, self.total_steps = 0, 0
        self.observed: dict[str, Tensor] = {}

    def prepare(self, student: Seen, teacher: Seen) -> None:
        """Builds what depends on the shapes of features, and refuses what cannot be compared.

        Args:
            student: An evaluation of an example.
            teacher: Of the same.

        Raises:
            Mistake: They cannot be compared.
        """

    def learn(self, labels: Tensor, boxes: Tensor) -> None:
        """Takes what it needs to know of the annotations to train on, where there are such; once, before training.

        Args:
            labels: int64 [n] of all objects.
            boxes: [n, 4], x0, y0, x1, y1 relative to their images.
        """

    @abstractmethod
    def forward(self, student: Seen, teacher: Seen) -> Tensor | Mapping[str, Tensor]:
        """The loss of a batch, without its weight, or the losses that `names` names; one that is not there is 0.

        Args:
            student: With gradient.
            teacher: Without.

        Returns:
            Scalars in single precision.
        """

    def pairs(self, student: Seen, teacher: Seen) -> list[tuple[Tensor, Tensor]]:
        """The feature maps of both, in the order of the layers.

        Raises:
            Mistake: One has more than the other.
        """
        own, theirs = student.maps(self.student_layers), teacher.maps(self.teacher_layers)
        if len(own) != len(theirs) or not own:
            raise Mistake(
                f"{type(self).__name__} compares maps one by one: the student's layers "
                f"{', '.join(self.student_layers) or '(none)'} return {len(own)}, the teacher's "
                f"{', '.join(self.teacher_layers) or '(none)'} {len(theirs)}"
            )
        return list(zip(own, theirs, strict=True))

    def check_sizes(self, student: Seen, teacher: Seen) -> None:
        """Refuses maps of different heights and widths.

        Raises:
            Mistake: They differ.
        """
        for place, (own, theirs) in enumerate(self.pairs(student, teacher)):
            if own.shape[2:] != theirs.shape[2:]:
                raise Mistake(
                    f"{type(self).__name__}: map {place} is {_size(own)} in the student and {_size(theirs)} in the "
                    "teacher: their strides, or how they pad images, differ; compare layers of equal stride"
                )


def _size(features: Tensor) -> str:
    return "x".join(map(str, features.shape[2:])) or "without height and width"
