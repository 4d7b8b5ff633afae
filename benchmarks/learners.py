"""A training step of BYOL, MoCo v2 and DINO: here against lightly's published modules, side by side in one process.

    python -m benchmarks.learners

lightly's are its heads, losses and momentum update, put together as the examples of its documentation do it. Both have
the same backbone, crops, batch, sizes of heads and queue, and optimiser; a step is the teacher's update, forward and
backward pass, and the optimiser's step. Sizes are the published ones at 224 pixels, and those of lightly's examples at
32. All take turns, on one thread; time is CPU time, and a ratio, lightly's to ours, the median of the repeats': above
one, ours is faster. With convolutions, ours is measured with the task's option `channels_last`, too. lightly is in the
extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import count, product
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lightning_modules.randomness import step_seed
from models.self_supervised import BYOL, DINO, Learner, MoCo
from models.smoothing import Smoother

try:
    from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, DINOProjectionHead, MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
except ImportError as error:
    raise SystemExit("this benchmark compares with lightly, which is not installed: pip install lightly") from error

MOMENTUM = 0.99
BACKBONES = ("resnet18", "vit_tiny_patch16_224")
BATCH = {32: 32, 224: 4}
LOCAL = {32: 16, 224: 96}
# Of heads and queue: as published at 224 pixels, and as in lightly's examples at 32.
HIDDEN = {32: 1024, 224: 4096}
QUEUES = {32: 4096, 224: 65536}
DINO_SIZES: dict[int, dict[str, int]] = {
    32: {"hidden_dim": 512, "bottleneck_dim": 64, "out_dim": 2048},
    224: {"hidden_dim": 2048, "bottleneck_dim": 256, "out_dim": 65536},
}
Step = Callable[[list[Tensor]], None]


def backbone_of(name: str, size: int) -> nn.Module:
    """A network of timm's, with patches of 4 pixels on images of 32."""
    torch.manual_seed(0)
    options: dict[str, Any] = {}
    if name.startswith("vit"):
        options = {"img_size": size, "dynamic_img_size": True} | ({"patch_size": 4} if size == 32 else {})
    return timm.create_model(name, num_classes=0, **options)


def crops(learner: str, size: int) -> list[Tensor]:
    """Views [V, B, 3, H, W] by size: two, and of DINO eight local ones, too."""
    torch.manual_seed(0)
    sizes = [(2, size)] + ([(8, LOCAL[size])] if learner == "DINO" else [])
    return [torch.randn(views, BATCH[size], 3, side, side) for views, side in sizes]


def optimizer_of(learner: str, network: nn.Module) -> torch.optim.Optimizer:
    """SGD, and AdamW for DINO."""
    if learner == "DINO":
        return torch.optim.AdamW(network.parameters(), 1e-4)
    return torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)


def ours(learner: str, backbone: nn.Module, size: int, order: torch.memory_format = torch.contiguous_format) -> Step:
    """A step with this project's learner and smoother, images and weights in a memory order."""
    network: Learner
    if learner == "BYOL":
        network = BYOL(backbone, HIDDEN[size])
    elif learner == "MoCo":
        network = MoCo(backbone, queue_size=QUEUES[size], shuffle=False)
    else:
        network = DINO(backbone, dict(DINO_SIZES[size]))
    network.to(memory_format=order)
    smoother = Smoother({"teacher": (network.student, network.teacher)})
    optimizer, steps = optimizer_of(learner, network), count()

    def step(views: list[Tensor]) -> None:
        smoother.update(MOMENTUM, 0.0, step_seed(0, -1, next(steps)))
        network([_in_order(view, order) for view in views]).backward()
        optimizer.step()
        network.advance()
        optimizer.zero_grad()

    return step


def _in_order(views: Tensor, order: torch.memory_format) -> Tensor:
    return views.flatten(0, 1).contiguous(memory_format=order).unflatten(0, views.shape[:2])


class Theirs(nn.Module):
    """Student and teacher as lightly's examples put them together.

    Args:
        backbone: Images to features.
        head: Makes one of lightly's.
        predictor: One of lightly's, or nothing.
    """

    def __init__(self, backbone: nn.Module, head: Callable[[], nn.Module], predictor: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head, self.predictor = backbone, head(), predictor
        self.backbone_momentum, self.head_momentum = copy.deepcopy(backbone), head()
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)

    def follow(self) -> None:
        """Moves the teacher."""
        update_momentum(self.backbone, self.backbone_momentum, MOMENTUM)
        update_momentum(self.head, self.head_momentum, MOMENTUM)

    def forward(self, images: Tensor) -> Tensor:
        """What the student makes of images."""
        return self.predictor(self.head(self.backbone(images).flatten(start_dim=1)))

    def teach(self, images: Tensor) -> Tensor:
        """What the teacher makes of them."""
        return self.head_momentum(self.backbone_momentum(images).flatten(start_dim=1)).detach()


def theirs(learner: str, backbone: nn.Module, size: int) -> Step:
    """A step with lightly's modules."""
    dim = int(backbone.num_features)  # type: ignore[arg-type]
    criterion: nn.Module
    if learner == "BYOL":
        hidden = HIDDEN[size]
        head = partial(BYOLProjectionHead, dim, hidden, 256)
        network = Theirs(backbone, head, BYOLPredictionHead(256, hidden, 256))
        criterion = NegativeCosineSimilarity()
    elif learner == "MoCo":
        network = Theirs(backbone, partial(MoCoProjectionHead, dim, dim, 128), nn.Identity())
        criterion = NTXentLoss(0.2, memory_bank_size=(QUEUES[size], 128))
    else:
        options = {name.replace("out_dim", "output_dim"): value for name, value in DINO_SIZES[size].items()}
        network = Theirs(backbone, partial(DINOProjectionHead, dim, **options), nn.Identity())
        criterion = DINOLoss(options["output_dim"])
    optimizer = optimizer_of(learner, network)

    def loss(views: list[Tensor]) -> Tensor:
        if learner == "DINO":
            teacher = [network.teach(view) for view in views[:2]]
            return criterion(teacher, [network(view) for view in views])
        first, second = views
        if learner == "MoCo":
            query = network(first)
            return criterion(query, network.teach(second))
        p0, z0 = network(first), network.teach(first)
        p1, z1 = network(second), network.teach(second)
        return 0.5 * (criterion(p0, z1) + criterion(p1, z0))

    def step(views: list[Tensor]) -> None:
        network.follow()
        loss([view for size in views for view in size]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(learner: str, name: str, size: int, repeats: int) -> None:
    """Prints the times of a step, and their ratio."""
    views = crops(learner, size)
    steps = {
        "here": ours(learner, backbone_of(name, size), size),
        "lightly": theirs(learner, backbone_of(name, size), size),
    }
    if name.startswith("resnet"):
        steps["channels_last"] = ours(learner, backbone_of(name, size), size, torch.channels_last)
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for repeat in range(repeats + 1):
        for side, step in steps.items():
            started = time.process_time()
            step(views)
            if repeat:
                seconds[side].append(time.process_time() - started)
    print(f"{learner:5s} {name:21s} {size:4d} pixels, batch {BATCH[size]:3d}: ", end="")
    print(f"lightly {1e3 * statistics.median(seconds['lightly']):.0f} ms", end="")
    for side in [each for each in steps if each != "lightly"]:
        ratios = sorted(their / own for own, their in zip(seconds[side], seconds["lightly"], strict=True))
        median = 1e3 * statistics.median(seconds[side])
        print(
            f"; {side} {median:.0f} ms, ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            end="",
        )
    print(flush=True)


def main() -> None:
    """Parses the arguments and prints a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="measured steps of each")
    parser.add_argument("--learners", nargs="+", choices=["BYOL", "MoCo", "DINO"], default=["BYOL", "MoCo", "DINO"])
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--sizes", nargs="+", type=int, choices=list(BATCH), default=list(BATCH), help="of images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for learner, name, size in product(options.learners, options.backbones, options.sizes):
        compare(learner, name, size, options.repeats)


if __name__ == "__main__":
    main()
