"""What every student with a teacher offers to the task that trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from models.mistakes import Mistake
from models.self_supervised.collapse import direction_sums, spread
from models.self_supervised.encoder import Encoder

Side = Literal["student", "teacher"]
# Views of one size each, [V, B, 3, H, W], in the order in which a data module gives them.
Views = list[Tensor]
# Healthy projections are above 0.3, collapsed ones below 0.02.
_LEAST_SPREAD = 0.05


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

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Students with the teachers that follow them."""
        return [(self.student, self.teacher)]

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

    def remarks(self, step: int) -> dict[str, Tensor]:
        """Scalars worth logging of the last batch, by name, on the device.

        Args:
            step: Optimiser steps that are done.
        """
        return {}

    def tally(self, images: Tensor) -> dict[str, Tensor]:
        """What tells whether the published side has collapsed, as sums over images [B, 3, H, W]."""
        return {"directions": direction_sums(self.side(self.published)(images))}

    def signs(self, tally: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """What the sums say, as scalars by name.

        Args:
            tally: Sums of `tally` over all images.
            count: Images.
        """
        return {"spread": spread(tally["directions"], count)}

    def collapsed(self, signs: dict[str, Tensor]) -> str | None:
        """Why representations say nothing any more, in plain words; None if they do.

        Args:
            signs: What `signs` returned.
        """
        if float(signs["spread"]) < _LEAST_SPREAD:
            return f"the projections of all images point the same way (spread {float(signs['spread']):.4f} of 1)"
        return None

    def forward(self, images: Tensor | Views) -> Tensor:
        """The loss of views, or the published features [B, C] of images [B, 3, H, W]."""
        if isinstance(images, list):
            return self.loss(images)
        return self.side(self.published).features(images)


def two_views(views: Views) -> tuple[Tensor, Tensor]:
    """The two views [B, 3, H, W] of each image.

    Raises:
        Mistake: There are not two.
    """
    if (count := sum(len(size) for size in views)) != 2:
        raise Mistake(f"two views of each image are compared, not {count}: give MultiView two views")
    first, second = (view for size in views for view in size)
    return first, second
