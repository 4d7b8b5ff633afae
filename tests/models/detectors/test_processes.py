"""Detectors on two processes, with an image each: their losses average to those of one process with both images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.detectors import assignment
from models.detectors.fcos import FCOS
from models.detectors.rcnn import CascadeMaskRCNN, MaskRCNN
from models.detectors.retinanet import RetinaNet
from tests.library.processes import averaged, on_two_processes

SIDE = 160
TINY = {"backbone": "resnet26", "num_classes": 3, "options": {"channels": (8, 8, 16, 16)}, "fpn_chans": 32}
NETWORKS = {
    "mask": lambda convention: MaskRCNN(**TINY, fc_dim=16, convention=convention),
    # Batch norms of the box heads would see other images.
    "cascade": lambda convention: CascadeMaskRCNN(**TINY, fc_dim=16, convention=convention, box_head="2fc"),
    "retinanet": lambda convention: RetinaNet(**TINY, convention=convention),
    "fcos": lambda convention: FCOS(**TINY, convention=convention),
}
# The average of RetinaNet after detectron2 starts from 100 anchors of a process: another training on several.
PAIRS = [
    (name, convention)
    for name in NETWORKS
    for convention in ("mmdet", "detectron2", "torchvision")
    if (name, convention) != ("retinanet", "detectron2")
]
BOXES = [[[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 58.0, 58.0], [2.0, 2.0, 20.0, 20.0]], [[10.0, 10.0, 31.0, 60.0]]]


def network(name: str, convention: str) -> Any:
    torch.manual_seed(0)
    built = NETWORKS[name](convention).train()
    if hasattr(built, "rpn"):
        # As many as there are, which are not as many in each image.
        built.rpn.drawn = 10**6
        for stage in built.stages():
            stage.drawn = 10**6
    return built


def scene(images: slice) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    pictures = list(torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    targets = []
    for boxes in BOXES:
        masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[int(y0) : int(y1), int(x0) : int(x1)] = True
        targets.append({"boxes": torch.tensor(boxes), "labels": torch.arange(len(boxes)) % 3, "masks": masks})
    return pictures[images], targets[images]


def test_two_processes_have_the_losses_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is drawn at random is drawn by each process for itself.
    monkeypatch.setattr(assignment, "_draw", lambda indices, count: indices[:count])

    def losses(images: slice) -> dict[str, Tensor]:
        return {
            f"{name} {convention} {term}": value
            for name, convention in PAIRS
            for term, value in network(name, convention)(*scene(images)).items()
        }

    two = averaged(on_two_processes(lambda rank: losses(slice(rank, rank + 1)), tmp_path))
    one = losses(slice(None))
    assert two.keys() == one.keys()
    for name, value in one.items():
        assert two[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
