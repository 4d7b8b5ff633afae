"""What a network answers, softened: a student's logits follow its teacher's.

Reference: "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from models.distillation.seen import Seen, maps_of
from models.distillation.term import Term
from models.mistakes import Mistake


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of softened answers, temperature^2 KL(teacher || student), the mean over all but the classes.

    Args:
        student: Logits [B, K, ...].
        teacher: Logits of the same shape.
        temperature: What both are divided by.

    Returns:
        A scalar in single precision.
    """
    own = (student.float() / temperature).log_softmax(1)
    theirs = (teacher.float() / temperature).log_softmax(1)
    return F.kl_div(own, theirs, reduction="none", log_target=True).sum(1).mean() * temperature**2


def check_answers(term: str, student: Seen, teacher: Seen) -> None:
    """Refuses networks whose answers a term cannot compare.

    Raises:
        Mistake: They answer nothing in training, or their answers differ in shape.
    """
    own, theirs = maps_of(student.output), maps_of(teacher.output)
    if not own or not theirs or own[-1].ndim < 2:
        raise Mistake(
            f"{term} compares answers, and the networks return none in training; take a term on features, such as "
            "Hints, with the layers' names"
        )
    if own[-1].shape[1] != theirs[-1].shape[1]:
        raise Mistake(
            f"the student tells {own[-1].shape[1]} classes apart, the teacher {theirs[-1].shape[1]}: their answers "
            "cannot be compared; take a teacher of the same classes, or a term on features"
        )
    if own[-1].shape != theirs[-1].shape:
        raise Mistake(
            f"the student answers {list(own[-1].shape[1:])} an image, the teacher {list(theirs[-1].shape[1:])}"
        )


class Logits(Term):
    """The student's answers follow the teacher's: of a classifier, or of a segmenter at every place.

    Of a student with exits, each exit follows the teacher's last one; the mean over the exits counts. With `from_last`,
    the earlier exits follow the student's own last one, too (without a gradient into it).

    Args:
        weight: What the loss is multiplied by. In the paper it is the share that is taken from the labels'.
        temperature: What logits are divided by.
        exits: `all` or the `last` one.
        from_last: Share of the student's own last exit beside the teacher, from 0 to 1.

    Raises:
        Mistake: A temperature that is not positive, or a share outside of [0, 1].
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 4.0,
        exits: Literal["all", "last"] = "all",
        from_last: float = 0.0,
    ) -> None:
        super().__init__(weight)
        if not temperature > 0:
            raise Mistake(f"temperature is positive, not {temperature:g}")
        if not 0 <= from_last <= 1:
            raise Mistake(f"from_last is a share from 0 to 1, not {from_last:g}")
        self.temperature, self.exits, self.from_last = temperature, exits, from_last

    @override
    def prepare(self, student: Seen, teacher: Seen) -> None:
        check_answers(type(self).__name__, student, teacher)

    @override
    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        exits = maps_of(student.output)
        target = maps_of(teacher.output)[-1]
        losses = []
        for place, logits in enumerate(exits if self.exits == "all" else exits[-1:]):
            loss = soft_cross_entropy(logits, target, self.temperature)
            if self.from_last and self.exits == "all" and place < len(exits) - 1:
                own = soft_cross_entropy(logits, exits[-1].detach(), self.temperature)
                loss = (1 - self.from_last) * loss + self.from_last * own
            losses.append(loss)
        return torch.stack(losses).mean()
