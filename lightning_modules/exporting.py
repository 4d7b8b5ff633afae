"""What a file of a task's network returns, and how such an answer stands for what the network returns."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lightning_modules.exits import as_exits, exit_suffixes

# Tensors by name; the first axis of each is the batch.
Answer = dict[str, Tensor]


@runtime_checkable
class Exportable(Protocol):
    """A task whose network fits into a file that other programs run."""

    @property
    def answers_batches(self) -> bool:
        """Whether a file may be asked of several images at once."""

    def answer(self, images: Tensor) -> Answer:
        """What is said of images.

        Args:
            images: [B, 3, H, W], normalised; B is 1 where the task answers no batches.
        """

    def returned(self, answer: Answer, inputs: tuple[Any, ...]) -> Any:
        """What the network would have returned.

        Args:
            answer: what a file has said of the images.
            inputs: what the network was given, `Task.inputs`; one image where the task answers no batches.
        """


class ExitAnswers:
    """Makes a task `Exportable` whose network returns a tensor for a batch of images, or a list of them, one an exit.

    The last exit's has the name `answer_name`, those before it `<answer_name>_exit0` ...
    """

    answer_name = "logits"
    answers_batches = True

    def answer(self, images: Tensor) -> Answer:
        """What each exit says of images [B, 3, H, W], by name."""
        exits = as_exits(self(images))  # type: ignore[operator]
        return {f"{self.answer_name}{end}": each for end, each in zip(exit_suffixes(len(exits)), exits, strict=True)}

    def returned(self, answer: Answer, inputs: tuple[Any, ...]) -> Any:
        """A tensor of one exit, a list of several."""
        exits = list(answer.values())
        return exits if len(exits) > 1 else exits[0]
