"""Where a teacher's decoder looks for the objects of an image: what instance-conditional distillation follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.report import Report
from drawing.detection import instance_masks
from drawing.figures import SMALL
from lightning_modules.detection import Detection
from models.compute import inference
from models.distillation import InstanceConditional


class InstanceMasks(Report):
    """Draws, of a few evaluated images, each object's box and where the decoder of ICD looks for it in the teacher.

    Args:
        images: how many, the first with objects.
        objects: of each image, at the most.
    """

    reads = Detection
    pictures: ClassVar = {"instance_masks.png": "where the teacher is looked at for each object, beside its box"}

    def __init__(self, images: int = 4, objects: int = 3) -> None:
        self.images, self.objects = images, objects
        self.kept: list[tuple[int, Tensor, dict[str, Tensor]]] = []

    @override
    def applies(self, task: LightningModule) -> bool:
        return super().applies(task) and self._term(task) is not None

    @override
    def start(self) -> None:
        self.kept = []

    @override
    def keep(self, batch: Mapping[str, Any], outputs: Any) -> None:
        for index, image, target in zip(batch["index"], batch["image"], batch["target"], strict=True):
            if len(self.kept) < self.images and len(target["labels"]):
                few = {key: target[key][: self.objects] for key in ("boxes", "labels")}
                self.kept.append((int(index), image, few))

    @override
    def draw(self) -> Mapping[str, Figure]:
        term, distillation = self._term(self.task), self.task.distillation
        if term is None or not self.kept:
            return {}
        rows = []
        for index, image, target in self.kept:
            with inference(distillation):
                looked = term.masks(distillation.teach(([image], [target])))[0]
            seen = torch.stack([_together(level, term.stride, looked[0].shape[1:]) for level in looked]).sum(0)
            height, width = image.shape[1:]
            picture = self.data.picture(self.split, index, SMALL)
            scale = np.array([picture.shape[1] / width, picture.shape[0] / height] * 2)
            boxes = target["boxes"].cpu().numpy() * scale
            # Cells of padding at the right and below stand out of the picture.
            extent = (seen.shape[2] * term.stride * scale[0], seen.shape[1] * term.stride * scale[1])
            names = [self.data.class_names[int(label)] for label in target["labels"]]
            rows.append((picture, boxes, seen.cpu().numpy(), extent, names))
        return {"instance_masks": instance_masks(rows, "where the decoder looks in the teacher's maps, all levels")}

    @staticmethod
    def _term(task: Any) -> InstanceConditional | None:
        distillation = getattr(task, "distillation", None)
        terms = distillation.terms.values() if distillation is not None else []
        return next(
            (term for term in terms if isinstance(term, InstanceConditional) and term.decoder is not None), None
        )


def _together(level: Tensor, stride: int, finest: torch.Size) -> Tensor:
    """Weights of a level [n, h, w] as shares of the finest level's cells [n, *finest]."""
    rows = torch.arange(finest[0], device=level.device) * level.shape[1] // finest[0]
    columns = torch.arange(finest[1], device=level.device) * level.shape[2] // finest[1]
    share = level.shape[1] * level.shape[2] / (finest[0] * finest[1])
    return level[:, rows[:, None], columns] * share
