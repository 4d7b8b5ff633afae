"""Growth with the side of an image and with the exits of a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.growth.measuring import Case, Work
from datamodules.decoding import Encoded
from models.anytime import ExitThresholds, Outcomes, Policy, run
from models.segmenters.inference import sliding_window

SIDES = (64, 256, 1_024, 4_096)
WINDOW, CLASSES = 256, 19
EXITS = (2, 4, 8, 12)


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10)
    return network.eval()


def whole(side: int, folder: Path) -> Work:
    """A ResNet of a square image at its full size."""
    network, image = _network(), torch.rand(1, 3, side, side)

    @torch.no_grad()
    def work() -> None:
        network(image)

    return work


def in_windows(side: int, folder: Path) -> Work:
    """Scores of 19 classes from windows of 256 pixels."""
    head = nn.Conv2d(3, CLASSES, 3, padding=1).eval()
    image = torch.rand(1, 3, side, side)

    @torch.no_grad()
    def work() -> None:
        sliding_window(lambda window: [head(window)], image, (WINDOW, WINDOW), (WINDOW, WINDOW))

    return work


def decoded(side: int, folder: Path) -> Work:
    """A JPEG of this side, read for a network that takes 224 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    Image.fromarray(pixels).resize((side, side)).save(folder / "image.jpg")

    def work() -> None:
        Encoded(folder / "image.jpg").reduced(224)

    return work


class Staircase(nn.Module):
    """Exits one layer apart."""

    def __init__(self, num_exits: int, width: int = 64) -> None:
        super().__init__()
        self.num_exits = num_exits
        self.layers = nn.ModuleList(nn.Conv2d(width if exit else 3, width, 3, padding=1) for exit in range(num_exits))
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(num_exits))

    def start(self, images: Tensor) -> Tensor:
        """The images."""
        return images

    def advance(self, exit: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of an exit, and the maps behind it."""
        state = self.layers[exit](state).relu()
        return self.heads[exit](state.mean((2, 3))), state


def every_exit(exits: int, folder: Path) -> Work:
    """Early exit of 64 images of 32 x 32 that all stay to the end."""
    network, images = Staircase(exits).eval(), torch.rand(64, 3, 32, 32)
    policy = Policy("max_prob", (*[2.0] * (exits - 1), 0.0))

    def work() -> None:
        run(network, images, policy)

    return work


def solved(exits: int, solver: str) -> Work:
    """Thresholds from 5,000 samples."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(10, (5_000,), generator=generator)
    hints = 2 * nn.functional.one_hot(target, 10)
    logits = [hints * (exit + 1) / exits + torch.randn(5_000, 10, generator=generator) for exit in range(exits)]
    outcomes = Outcomes.from_logits(logits, target)

    def work() -> None:
        ExitThresholds.solve(outcomes, [float(exit + 1) for exit in range(exits)], solver)  # type: ignore[arg-type]

    return work


CASES = {
    "side": [
        Case("ResNet-10 of one image, whole", SIDES, whole),
        Case("segmentation scores in windows of 256", SIDES, in_windows),
        Case("a JPEG read for 224 pixels", SIDES, decoded),
    ],
    "exits": [
        Case("early exit of 64 images that all stay", EXITS, every_exit),
        Case("geometric thresholds of 5,000 samples", EXITS, lambda exits, folder: solved(exits, "geometric")),
        Case("Pareto thresholds of 5,000 samples", EXITS, lambda exits, folder: solved(exits, "pareto")),
    ],
}
