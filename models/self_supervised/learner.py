"""What every student with a teacher offers to the task that trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from models.self_supervised.encoder import Encoder

Side = Literal["student", "teacher"]
# Views of one size each, [V, B, 3, H, W], in the order in which a data module gives them.
Views = list[Tensor]


class Learner(nn.Module, ABC):
    """A student that learns from its teacher, which follows it and gets no gradients.

    What moves the teacher's weights is not decided here: `pairs` names them. What else of a method changes from step
    to step without a gradient, such as MoCo's queue and DINO's centre, waits for `advance`, which the task calls after
    each optimiser step, however many batches the step has accumulated.

    Called with views, it returns the loss; called with images [B, 3, H, W] in evaluation mode, the features [B, C] of
    the `published` side.

    Args:
        student: The network that is trained.

    Attributes:
        published: The side that the paper evaluates.
    """

    published: Side = "student"

    def __init__(self, student: Encoder) -> None:
        super().__init__()
        self.student = student
        self.teacher = deepcopy(student).requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        # Of what all processes draw alike; the task puts its own here.
        self.generator: torch.Generator | None = None

    def pairs(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        """Teachers with the students that they follow, by name."""
        return {"encoder": (self.teacher, self.student)}

    def side(self, side: Side) -> Encoder:
        """The student or the teacher."""
        return self.student if side == "student" else self.teacher

    @abstractmethod
    def loss(self, views: Views) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            views: Of the batch, by size.
        """

    def advance(self) -> None:
        """What follows an optimiser step; every process calls it."""

    def frozen_parameters(self, epoch: int) -> list[nn.Parameter]:
        """Parameters of the student that get no step in an epoch.

        Args:
            epoch: From 0.
        """
        return []

    def remarks(self) -> dict[str, Tensor]:
        """Scalars worth logging of the last batch, by name, on the device."""
        return {}

    def forward(self, images: Tensor | Views) -> Tensor:
        """The loss of views, or the published features [B, C] of images [B, 3, H, W]."""
        if isinstance(images, list):
            return self.loss(images)
        return self.side(self.published).features(images)


def two_views(views: Views) -> tuple[Tensor, Tensor]:
    """The two views [B, 3, H, W] of each image.

    Raises:
        ValueError: There are not two.
    """
    first, *second = [view for size in views for view in size]
    if len(second) != 1:
        raise ValueError(f"two views of each image are compared, not {1 + len(second)}")
    return first, second[0]
