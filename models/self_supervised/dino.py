"""DINO: a student finds the prototypes that its teacher finds in other crops.

Reference: "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294, and its published code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.mistakes import Mistake
from models.processes import process_mean
from models.self_supervised.encoder import DINOHead, Encoder, feature_dim
from models.self_supervised.learner import Learner, Views

# Entropies, as shares of the largest, that only collapsed teachers have.
_LEAST_ENTROPY, _MOST_ENTROPY = 0.05, 0.995


class Centre(nn.Module):
    """A moving mean of the teacher's logits, which keeps one prototype from winning always.

    Args:
        dim: Prototypes, K.
        momentum: Share of the old centre that stays.
    """

    value: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(1, dim))
        self._pending: list[Tensor] = []

    def see(self, logits: Tensor) -> None:
        """Notes logits [..., K] for the next step of the centre; equally many each time."""
        self._pending.append(logits.detach().flatten(0, -2).mean(0, keepdim=True))

    @torch.no_grad()
    def advance(self) -> None:
        """Moves towards the mean of what all processes have seen since the last step, equation 4 of the paper."""
        if self._pending:
            mean = torch.stack(self._pending).mean(0)
            self.value.lerp_(process_mean(mean, mean.device).to(self.value.dtype), 1 - self.momentum)
            self._pending.clear()


def cross_entropies(student: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each crop by each of the teacher's views but itself, averaged.

    Args:
        student: Logits [V, B, K], already divided by the temperature; the first G crops are the teacher's views.
        targets: Probabilities [G, B, K].
    """
    views, crops, batch = len(targets), len(student), student.shape[1]
    by_pair = -torch.einsum("gbk,vbk->gv", targets, student.log_softmax(-1)) / batch
    others = ~torch.eye(views, crops, dtype=torch.bool, device=by_pair.device)
    return (by_pair * others).sum() / (views * crops - views)


class DINO(Learner):
    """Student and teacher with a head each, and the centre of the teacher's logits.

    The views of an image are two global crops, which come first, and any number of local ones; the teacher sees the
    global ones only.

    Args:
        backbone: Images of any of the crops' sizes to features [B, C].
        head: Options of `DINOHead`: `out_dim`, `norm`, `frozen_length` ...
        student_temp: Temperature of the student.
        teacher_temp: Temperature of the teacher; published runs let it rise (see the task's `network_schedules`).
        center_momentum: Share of the old centre that stays at a step; 1 leaves it at 0.
        freeze_last_layer: Epochs at the beginning in which the last layer gets no step.
    """

    published = "teacher"
    num_global = 2

    def __init__(
        self,
        backbone: nn.Module,
        head: dict[str, Any] | None = None,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        center_momentum: float = 0.9,
        freeze_last_layer: int = 1,
    ) -> None:
        projector = DINOHead(feature_dim(backbone), **(head or {}))
        super().__init__(Encoder(backbone, projector))
        self.centre = Centre(len(projector.last_layer.direction), center_momentum)
        self.student_temp = student_temp
        self.teacher_temp = teacher_temp
        self.freeze_last_layer = freeze_last_layer
        self._entropies: dict[str, Tensor] = {}

    def frozen_parameters(self, epoch: int) -> list[nn.Parameter]:
        """Those of the last layer, at first."""
        last: nn.Module = self.student.projector.get_submodule("last_layer")
        return list(last.parameters()) if epoch < self.freeze_last_layer else []

    def student_logits(self, views: Views) -> Tensor:
        """Logits [V, B, K] of all crops; those of one size go through the backbone together."""
        features = [self.student.features(size.flatten(0, 1)) for size in views]
        return self.student.projector(torch.cat(features)).unflatten(0, (-1, views[0].shape[1]))

    def targets(self, logits: Tensor) -> Tensor:
        """Probabilities of the teacher's logits, centred and sharpened."""
        return ((logits - self.centre.value) / self.teacher_temp).softmax(-1)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of logits, equation 3 of the paper.

        Args:
            student: [V, B, K], global crops first.
            teacher: [G, B, K] of the global crops.
        """
        targets = self.targets(teacher)
        self.centre.see(teacher)
        self._entropies = entropies(targets.flatten(0, 1))
        return cross_entropies(student / self.student_temp, targets)

    def loss(self, views: Views) -> Tensor:
        """Mean over all pairs of a teacher's view and another crop.

        Raises:
            Mistake: The first views are not two or more global crops.
        """
        if len(views[0]) < self.num_global:
            raise Mistake(
                f"DINO's first views are {self.num_global} crops of one size, not {len(views[0])}: give MultiView a "
                f"view with copies: {self.num_global} first, or {self.num_global} views that end in the same size"
            )
        with torch.no_grad():
            seen = views[0][: self.num_global]
            teacher = self.teacher(seen.flatten(0, 1)).unflatten(0, (self.num_global, -1))
        return self.compare(self.student_logits(views), teacher)

    def advance(self) -> None:
        """Moves the centre."""
        self.centre.advance()

    def remarks(self, step: int) -> dict[str, Tensor]:
        """Entropy of the teacher's answers and of their mean, as shares of the largest."""
        return {f"teacher_{name}": value for name, value in self._entropies.items()}

    def tally(self, images: Tensor) -> dict[str, Tensor]:
        """Sums of the teacher's answers to images, and of their entropies."""
        targets = self.targets(self.teacher(images))
        return {"answers": targets.sum(0), "entropies": torch.special.entr(targets).sum()}

    def signs(self, tally: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Entropy of the teacher's answers and of their mean, as shares of the largest."""
        largest = math.log(len(tally["answers"]))
        return {
            "entropy": tally["entropies"] / (count * largest),
            "mean_entropy": torch.special.entr(tally["answers"] / count).sum() / largest,
        }

    def collapsed(self, signs: dict[str, Tensor]) -> str | None:
        """Whether one prototype wins always, or all answers are undecided."""
        if float(signs["mean_entropy"]) < _LEAST_ENTROPY:
            return (
                f"one prototype wins for all images (entropy of the mean answer {float(signs['mean_entropy']):.3f} of "
                "1): centre the teacher's answers (center_momentum below 1)"
            )
        if float(signs["entropy"]) > _MOST_ENTROPY:
            return (
                f"all answers are undecided (entropy {float(signs['entropy']):.4f} of 1): lower teacher_temp, or raise "
                "the teacher's momentum"
            )
        return None


def entropies(probabilities: Tensor) -> dict[str, Tensor]:
    """How undecided answers are, as shares of the largest entropy.

    Both near 0: one prototype wins always. Both near 1: all answers are the same and say nothing.

    Args:
        probabilities: [B, K].

    Returns:
        Scalars `entropy`, the mean over the answers, and `mean_entropy`, of the mean answer.
    """
    answers = torch.cat([probabilities, probabilities.mean(0, keepdim=True)]).detach()
    each = torch.special.entr(answers).sum(1) / math.log(answers.shape[1])
    return {"entropy": each[:-1].mean(), "mean_entropy": each[-1]}
