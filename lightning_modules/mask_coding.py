"""How much of the objects' masks a code of a few hundred numbers keeps. No network is trained."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchvision.ops import box_convert, clip_boxes_to_image
from typing_extensions import override

from lightning_modules.findings import Findings, gathered
from lightning_modules.internals import trainer_of
from lightning_modules.task import Batch, Task
from models.layers.mask_code import MaskCode, crop, mask_iou
from models.layers.mask_code_baselines import GridCode, PrincipalCode

# The components of more masks than this would take minutes to find.
MOST_FITTED = 4096


class MaskCoding(Task):
    """Encodes and decodes the annotated masks of a data set, each cropped to its box, and compares.

    Training consists of one pass over the training objects, of which a `PrincipalCode` takes its components; other
    codes have nothing to learn, and the pass may be as short as the trainer allows. Each evaluation logs `mask_iou`,
    the mean over objects of the intersection over union of the cropped mask and what comes back.

    Batches are those of `Detection`. Training targets have `masks`; those of an evaluation are drawn from the outlines
    in the data module's `ground_truth`, in pixels of the original images.

    Args:
        network: the code, of masks of S x S pixels. See `models.layers.mask_code` and
            `models.layers.mask_code_baselines`.
    """

    monitor = "val/mask_iou"
    monitor_mode = "max"
    shown = ("mask_iou",)
    network: MaskCode | GridCode | PrincipalCode

    def __init__(self, network: MaskCode | GridCode | PrincipalCode) -> None:
        super().__init__(network)
        # There is no loss to descend.
        self.automatic_optimization = False
        self.mask_iou = MeanMetric(nan_strategy="disable")
        self._seen: list[Tensor] = []
        # Annotations of the objects of each image of the split that is evaluated.
        self._annotations: dict[int, list[dict[str, Any]]] = {}

    @override
    def configure_optimizers(self) -> list[Optimizer]:  # type: ignore[override]
        """None: nothing is descended."""
        return []

    @override
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """Nothing: codes take masks, and no image."""
        return ()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Keeps the objects' masks, if the code learns from them."""
        if isinstance(self.network, PrincipalCode) and sum(map(len, self._seen)) < MOST_FITTED:
            size = self.network.size
            self._seen += [crop(target["masks"], target["boxes"], size) for target in batch["target"]]

    @override
    def start(self, split: str) -> None:
        """Reads the annotations; in a fit, fits the code to the training objects seen since the last time."""
        self.mask_iou.reset()
        self._annotations = defaultdict(list)
        for record in self.data.ground_truth(split)["annotations"]:
            if not record["iscrowd"]:
                self._annotations[record["image_id"]].append(record)
        trainer = trainer_of(self)
        # A trial of one batch has too few objects for any number of components.
        if trainer is not None and trainer.state.fn == "fit" and not (trainer.sanity_checking or trainer.fast_dev_run):  # type: ignore[attr-defined]
            self._fit()

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Counts a batch; returns `crops`, the masks of its objects, bool [n, S, S]."""
        masks = torch.cat([self._annotated(target) for target in batch["target"]])
        self.mask_iou.update(mask_iou(self.network.masks(self.network.encode(masks)), masks))
        return {"crops": masks}

    @override
    def finish(self, split: str) -> Findings:
        return Findings({"mask_iou": self.mask_iou.compute()})

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the training objects that the code is not yet fitted to, beside what every task saves."""
        super().on_save_checkpoint(checkpoint)
        if self._seen:
            checkpoint["seen_masks"] = torch.cat(self._seen)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "seen_masks" in checkpoint:
            self._seen = [checkpoint["seen_masks"].to(self.device)]

    def _fit(self) -> None:
        network = self.network
        if not isinstance(network, PrincipalCode):
            return
        # A process may have had no object.
        nothing = torch.zeros(0, network.size, network.size, dtype=torch.bool, device=self.device)
        # Each process then finds the same components.
        seen = torch.cat(gathered(torch.cat([nothing, *self._seen]).cpu()))
        network.fit(seen[:MOST_FITTED].to(self.device))
        self._seen = []

    def _annotated(self, target: dict[str, Any]) -> Tensor:
        """The masks of an image's objects inside their boxes, bool [n, S, S]."""
        records, (height, width) = self._annotations[target["image_id"]], target["original_size"]
        masks = torch.zeros(len(records), height, width, dtype=torch.bool)
        for mask, record in zip(masks, records, strict=True):
            mask.copy_(torch.from_numpy(_drawn(record["segmentation"], height, width)))
        boxes = torch.tensor([record["bbox"] for record in records], dtype=torch.float32).view(-1, 4)
        boxes = clip_boxes_to_image(box_convert(boxes, "xywh", "xyxy"), (height, width))
        return crop(masks.to(self.device), boxes.to(self.device), self.network.size)


def _drawn(outline: Any, height: int, width: int) -> np.ndarray:
    """A COCO segmentation, polygons or a run-length code, as an array [height, width] of 0 and 1."""
    if isinstance(outline, list):
        outline = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
    return coco_mask.decode(outline)
