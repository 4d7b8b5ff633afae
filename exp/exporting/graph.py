"""A task's network as a graph: from images as bytes have them to named answers, for batches and sizes of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from datamodules import Pixels
from lightning_modules.exporting import Answer, Exportable
from models.compute import inference
from models.mistakes import Mistake

INPUT = "image"
LONGEST_REASON = 300
# Pixels of the shorter side of what is traced for images of any size.
LARGE = 256


class Normalisation(nn.Module):
    """What becomes of an image's values before a network takes them, and back.

    Args:
        pixels: how the network's images look.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        scale, shift = pixels.factors(torch.device("cpu"))
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.turned = pixels.order == "bgr"

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Images [..., 3, H, W], RGB from 0 to 255, as the network takes them."""
        ordered = images.flip(-3) if self.turned else images
        return ordered * self.scale - self.shift

    def undone(self, images: Tensor) -> Tensor:
        """The inverse; what is padding for the network becomes its mean colour."""
        values = (images + self.shift.to(images)) / self.scale.to(images)
        return values.flip(-3) if self.turned else values


class Portable(nn.Module):
    """What a file holds: normalisation, then the network's answer, in the order of its names.

    Args:
        task: with its weights.
        pixels: how the network's images look.
    """

    def __init__(self, task: Exportable, pixels: Pixels) -> None:
        super().__init__()
        self.normalisation = Normalisation(pixels)
        assert isinstance(task, nn.Module)
        self.task = task

    @override
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W], RGB from 0 to 255, to the tensors of the answer."""
        return tuple(self.answer(image).values())

    def answer(self, images: Tensor) -> Answer:
        """The same, by name."""
        task: Any = self.task
        return task.answer(self.normalisation(images))


@dataclass(frozen=True)
class Graph:
    """A traced network.

    Args:
        program: the graph.
        names: of its outputs, in their order.
        any_batch: whether it takes any number of images, else one.
        any_size: whether it takes images of any size that the network takes, else of one.
    """

    program: ExportedProgram
    names: list[str]
    any_batch: bool
    any_size: bool


def trace(module: Portable, images: Tensor, any_size: bool) -> Graph:
    """The graph of a network, for batches of any number of images where the task answers such.

    Args:
        module: what is traced; it is left in its mode.
        images: an example, [B, 3, H, W].
        any_size: whether height and width may be others than those of the example.

    Raises:
        Mistake: there is no such graph; the message names the part of the network that has none.
    """
    task: Any = module.task
    any_batch = bool(task.answers_batches)
    height, width = images.shape[-2:]
    if any_size:
        # A map of a single cell would be taken for one of any image. What is traced is not computed.
        times = 1
        while times * min(height, width) < LARGE:
            times *= 2
        height, width = times * height, 2 * times * width
    # A single image would be taken for a constant, too.
    example = images.new_zeros(2 if any_batch else 1, images.shape[1], height, width)
    dims = {0: Dim.DYNAMIC} if any_batch else {}
    dims |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if any_size else {}
    with inference(module), plain_attention(), _watched(module) as way:
        names = list(module.answer(images[:1]))
        try:
            program = torch.export.export(module, (example,), dynamic_shapes=(dims,), strict=False)
        except Exception as error:
            raise Mistake(f"{_part(way, module)} cannot be exported: {reason_of(error)}") from error
    return Graph(program, names, any_batch, any_size)


def reason_of(error: BaseException) -> str:
    """What an error of PyTorch's says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # What is violated stands below a line that says that something is.
    lines = [line.removeprefix("- ").partition(" If you")[0] for line in lines if line.startswith("- ")] or lines
    text = lines[0] if lines else type(error).__name__
    return f"{text[:LONGEST_REASON]} ..." if len(text) > LONGEST_REASON else text


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are at work, outermost first; after an error, of those that it happened in."""
    way: list[str] = []

    def enter(name: str) -> Any:
        return lambda *_: way.append(name)

    def leave(*_: Any) -> None:
        way.pop()

    hooks = []
    for name, each in module.named_modules():
        if name:
            hooks += [each.register_forward_pre_hook(enter(name)), each.register_forward_hook(leave)]
    try:
        yield way
    finally:
        for hook in hooks:
            hook.remove()


def _part(way: list[str], module: Portable) -> str:
    name = way[-1].removeprefix("task.") if way else ""
    with suppress(AttributeError):
        return f"{name} ({type(module.task.get_submodule(name)).__name__})" if name else "the network"
    return name


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without operators that stand for all of an attention on one machine, and lay out their results as it likes it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
