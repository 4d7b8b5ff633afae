"""What a distilled step costs: against a step of the student alone and a forward pass of the teacher, done apart.

    python -m benchmarks.distillation

Four rows: a ResNet-18 classifier taught by a ResNet-50 (`Logits`), the same by its feature maps (`Hints`), the first
with what the teacher says kept (`cache`), and a RetinaNet with ResNet-18 taught by one with ResNet-50 (ICD). Then the
attention of ICD's decoder, for the maps of an image of 800x1280, against `torch.nn.MultiheadAttention` with the same
weights, which has to give the same features; ICD needs the weights of each head, so torch is asked for them, and beside
it for none. What is compared takes turns in each repeat, on one thread; times are medians of CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules import Classification, Detection, Distillation
from lightning_modules.task import Task
from models.classifiers import timm_classifier
from models.detectors import RetinaNet
from models.distillation import Hints, InstanceConditional, Logits
from models.distillation.instance_conditional.decoder import Attention
from models.distillation.instance_conditional.memory import Memory

REPEATS = 5
CLASSES = 10
# Of RetinaNet at 800x1280, p3 to p7, and of instances asked for.
LEVELS, SLOTS, WIDTH, HEADS = [(100, 160), (50, 80), (25, 40), (13, 20), (7, 10)], 48, 256, 8


def median_times(works: Sequence[Callable[[], Any]], repeats: int = REPEATS) -> list[float]:
    """Median CPU time of each; they take turns, and the first turn does not count."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        for work, spent in zip(works, times, strict=True):
            started = time.process_time()
            work()
            if repeat:
                spent.append(time.process_time() - started)
    return [statistics.median(each) for each in times]


def step_of(task: Task, data: Any, loss_of: Callable[[Any], Tensor], batch: tuple[Any, ...]) -> Callable[[], None]:
    """A training step of a task's network, with all of its penalties."""
    if task.distillation is not None:
        task.distillation.attach(task, data)
    task.train()
    task._trainer = SimpleNamespace(global_step=5000, estimated_stepping_batches=9000)  # type: ignore[assignment]
    parameters = [each for each in task.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6)

    def step() -> None:
        loss = loss_of(task.network(*batch))
        for penalty in task.penalties.values():
            loss = loss + penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def classifiers(size: int, batch_size: int) -> None:
    """Rows of classification."""
    images, labels = torch.randn(batch_size, 3, size, size), torch.randint(CLASSES, (batch_size,))
    data = SimpleNamespace(example=lambda samples: {"image": images[:2]})
    teacher = timm_classifier("resnet50", CLASSES).eval()
    terms: dict[str, Any] = {
        "logits": lambda: Logits(),
        "hints": lambda: Hints(["layer2", "layer3", "layer4"]),
    }
    for name, make in terms.items():
        alone = Classification(timm_classifier("resnet18", CLASSES))
        taught = Classification(
            timm_classifier("resnet18", CLASSES), distillation=Distillation(teacher, {name: make()})
        )

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels)

        with_it, without = (step_of(each, data, loss, (images,)) for each in (taught, alone))
        say(f"ResNet-50 to ResNet-18, {name}, {batch_size} x {size}", with_it, without, lambda: teacher(images))


class OnePass:
    """The one batch that a data module's training images are."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch, size = batch, len(batch["index"])
        self.batches = SimpleNamespace(num_samples=size, batch_size=size)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield self.batch


def kept(size: int, batch_size: int) -> None:
    """The row of a step whose teacher has been run beforehand, against one that runs it."""
    images, labels = torch.randn(batch_size, 3, size, size), torch.randint(CLASSES, (batch_size,))
    once = OnePass({"image": images, "index": torch.arange(batch_size)})
    data = SimpleNamespace(example=lambda samples: {"image": images[:2]}, undrawn_train_dataloader=lambda: once)
    teacher = timm_classifier("resnet50", CLASSES).eval()

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    steps = [step_of(Classification(timm_classifier("resnet18", CLASSES)), data, loss, (images,))]
    for cache in (1.0, None):
        distillation = Distillation(teacher, {"logits": Logits()}, cache=cache)
        task = Classification(timm_classifier("resnet18", CLASSES), distillation=distillation)
        steps.append(step_of(task, data, loss, (images,)))
        precision = SimpleNamespace(forward_context=nullcontext)
        task._trainer.__dict__.update(world_size=1, precision_plugin=precision, datamodule=data)
        distillation.begin(task, afresh=False)
        distillation.index = once.batch["index"]
    alone, cached, asked = median_times(steps)
    print(
        f"ResNet-50 to ResNet-18, logits kept, {batch_size} x {size}: {cached:.3f} s a step where the teacher is run "
        f"beforehand, {asked:.3f} s where it is run at each ({cached / asked:.2f}), student's step {alone:.3f} s",
        flush=True,
    )


def detectors(size: tuple[int, int], batch_size: int) -> None:
    """The row of ICD."""
    images = [torch.randn(3, *size) for _ in range(batch_size)]
    boxes = torch.tensor([[20.0, 30.0, 200.0, 150.0], [60.0, 10.0, 140.0, 90.0], [5.0, 5.0, 60.0, 80.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2, 3])} for _ in images]
    data = SimpleNamespace(example=lambda samples: {"image": images[:1], "target": targets[:1]})
    teacher = RetinaNet("resnet50", CLASSES).eval()
    term = InstanceConditional(CLASSES, warm_up=0)
    taught = Detection(RetinaNet("resnet18", CLASSES), distillation=Distillation(teacher, {"icd": term}))
    alone = Detection(RetinaNet("resnet18", CLASSES))

    def loss(losses: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(losses.values())).sum()

    with_it, without = (step_of(each, data, loss, (images, targets)) for each in (taught, alone))
    say(f"RetinaNet R50 to R18, ICD, {batch_size} x {size[0]}x{size[1]}", with_it, without, lambda: teacher(images))


def say(name: str, taught: Callable[[], None], alone: Callable[[], None], teacher: Callable[[], Any]) -> None:
    """Prints a row."""

    def forward() -> None:
        with torch.no_grad():
            teacher()

    step, own, theirs = median_times([taught, alone, forward])
    print(
        f"{name}: distilled step {step:.3f} s, student's step {own:.3f} s, teacher's forward {theirs:.3f} s: "
        f"{step / (own + theirs):.3f} of both",
        flush=True,
    )


def decoder() -> None:
    """ICD's attention against torch's own module with the same weights."""
    ours = Attention(WIDTH, HEADS)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.in_proj_weight)
        theirs.in_proj_bias.copy_(ours.in_proj_bias)
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    maps = [torch.randn(2, WIDTH, *level) for level in LEVELS]
    memory = Memory.of(maps, [(800, 1280), (700, 1216)], (800, 1280))
    query = torch.randn(2, SLOTS, WIDTH)

    def torchs(need_weights: bool) -> Tensor:
        keys = memory.cells + ours.position(memory.position)
        found: Tensor = theirs(
            query,
            keys,
            memory.cells,
            key_padding_mask=memory.padding,
            need_weights=need_weights,
            average_attn_weights=False,
        )[0]
        return found

    torch.testing.assert_close(ours(query, memory).features, torchs(True), rtol=1e-4, atol=1e-5)

    def both_ways(work: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: work().sum().backward()

    works = [lambda: ours(query, memory).features, lambda: torchs(True), lambda: torchs(False)]
    mine, weighted, fused = median_times([both_ways(each) for each in works])
    print(
        f"ICD's attention, forward and backward, {SLOTS} slots, {memory.cells.shape[1]} cells, 2 images: {mine:.3f} s; "
        f"nn.MultiheadAttention with weights {weighted:.3f} s ({mine / weighted:.2f}), without {fused:.3f} s "
        f"({mine / fused:.2f})"
    )


def main() -> None:
    """Prints all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"one thread, torch {torch.__version__}")
    classifiers(arguments.image_size, arguments.batch_size)
    kept(arguments.image_size, arguments.batch_size)
    detectors((256, 320), 2)
    decoder()


if __name__ == "__main__":
    main()
