"""What a teacher makes of every training image, made once and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from lightning_modules.findings import gathered
from models.distillation import Seen
from models.mistakes import Mistake

if TYPE_CHECKING:
    from lightning_modules.task import Task

GIB = 2**30
Inputs = tuple[Any, ...]


class TeacherCache:
    """Features and answers of a teacher for all training images, on the task's device.

    Every process has all of them, for it is given other images in every epoch; the processes share the work of making
    them. They are made again when a training goes on, with the same bits: the teacher and the images are the same, and
    batches as large as those of the training.

    Args:
        teach: what the teacher makes of the inputs of a batch.
        most: GiB that a process may hold.

    Raises:
        Mistake: images that differ in size or cannot be read, or more to hold than may be.
    """

    def __init__(self, teach: Callable[[Inputs], Seen], most: float) -> None:
        self.teach, self.most = teach, most
        self._held: list[Tensor] = []
        self._structure: Any = None
        self._size: torch.Size | None = None

    @torch.no_grad()
    def fill(self, task: Task, data: Any) -> None:
        """Runs the teacher on every training image.

        Args:
            task: that learns, on its device.
            data: its data module.
        """
        loader = data.undrawn_train_dataloader()
        number, share = loader.batches.num_samples, loader.batches.batch_size // task.trainer.world_size
        batches, filled = iter(loader), 0
        for _ in range(max(gathered(len(loader)))):
            batch = next(batches, None)
            for made in gathered(None if batch is None else self._make(task, batch, share)):
                if made is not None:
                    filled += len(made[0])
                    self._hold(*made, number, task.device)
        if filled < number:
            raise Mistake(f"distillation.cache: {number - filled} of {number} training images cannot be read")

    def __call__(self, index: Tensor, inputs: Inputs) -> Seen:
        """What the teacher makes of some images.

        Args:
            index: int64 [B], their positions in the training split.
            inputs: of the student, for them.

        Returns:
            Its `output` is None where the teacher does not answer with tensors of a row for each image.
        """
        output, features = tree_unflatten([each.index_select(0, index) for each in self._held], self._structure)
        return Seen(inputs, output, features)

    def _make(self, task: Task, batch: dict[str, Any], share: int) -> tuple[Tensor, list[Tensor], Any]:
        """Positions of a batch's images, what the teacher makes of them on the host, and how that is nested."""
        number = len(batch["index"])
        (images, *_) = task.inputs(task.on_device(batch))
        self._check_sizes(images)
        # What a kernel makes of an image may depend on how many there are: the last batch is filled up.
        rows = [*range(number), *[0] * (share - number)]
        with task.trainer.precision_plugin.forward_context():
            seen = self.teach((images[rows] if isinstance(images, Tensor) else [images[row] for row in rows],))
        answers, _ = tree_flatten(seen.output)
        by_image = all(isinstance(each, Tensor) and each.shape[:1] == (len(rows),) for each in answers)
        made = (seen.output if by_image else None), seen.features
        leaves, structure = tree_flatten(tree_map_only(Tensor, lambda each: each[:number].cpu(), made))
        return batch["index"], leaves, structure

    def _check_sizes(self, images: Tensor | list[Tensor]) -> None:
        """Refuses images of several sizes: what they are padded to depends on which of them meet in a batch."""
        for each in images:
            self._size = self._size or each.shape
            if each.shape != self._size:
                sizes = " and ".join("x".join(map(str, size[1:])) for size in (self._size, each.shape))
                raise Mistake(
                    f"distillation.cache: training images are {sizes}, and how they are padded depends on which "
                    "meet in a batch: make them one size by train_transforms, or leave cache out"
                )

    def _hold(self, index: Tensor, leaves: list[Tensor], structure: Any, number: int, device: torch.device) -> None:
        """Keeps what was made of some images; makes room at the first."""
        if not self._held:
            needed = number * sum(each[0].numel() * each.element_size() for each in leaves if each is not None) / GIB
            if needed > self.most:
                raise Mistake(
                    f"distillation.cache: what the teacher makes of {number} images takes {needed:.3g} GiB, and "
                    f"{self.most:g} are allowed: raise cache or leave it out"
                )
            self._structure = structure
            self._held = [each.new_empty((number, *each.shape[1:]), device=device) for each in leaves]
        for held, each in zip(self._held, leaves, strict=True):
            held[index.to(device)] = each.to(device)
