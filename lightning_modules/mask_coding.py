"""How much of the objects' masks a code of a few hundred numbers keeps. No network is trained."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.utilities.distributed import gather_all_tensors
from torchvision.ops import box_convert, clip_boxes_to_image

from models.layers.mask_code import MaskCode, crop, mask_iou
from models.layers.mask_code_baselines import GridCode, PrincipalCode

# The components of more masks than this would take minutes to find.
MOST_FITTED = 4096


class MaskCoding(LightningModule):
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

    def __init__(self, network: MaskCode | GridCode | PrincipalCode) -> None:
        super().__init__()
        self.network = network
        # There is no loss to descend.
        self.automatic_optimization = False
        self.mask_iou = MeanMetric(nan_strategy="disable")
        self._seen: list[Tensor] = []
        # Annotations of the objects of each image of the split that is evaluated.
        self._annotations: dict[int, list[dict[str, Any]]] = {}

    def configure_optimizers(self) -> list[Optimizer]:
        """None: nothing is descended."""
        return []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Keeps the objects' masks, if the code learns from them."""
        if isinstance(self.network, PrincipalCode) and sum(map(len, self._seen)) < MOST_FITTED:
            size = self.network.size
            self._seen += [crop(target["masks"], target["boxes"], size) for target in batch["target"]]

    def on_validation_epoch_start(self) -> None:
        """Fits the code to the training objects seen since the last time, and reads the annotations."""
        self._start("val")
        # A trial of one batch has too few objects for any number of components.
        trial = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        fitting = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking and not trial
        if isinstance(self.network, PrincipalCode) and fitting:
            self._fit(self.network)

    def on_test_epoch_start(self) -> None:
        """Reads the annotations."""
        self._start("test")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Counts the batch into the validation metric."""
        return self._evaluate(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Counts the batch into the test metric."""
        return self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the metric over the validation objects of all processes."""
        self.log("val/mask_iou", self.mask_iou.compute(), prog_bar=True, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Logs the metric over the test objects of all processes."""
        self.log("test/mask_iou", self.mask_iou.compute(), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the training objects that the code is not yet fitted to."""
        if self._seen:
            checkpoint["seen_masks"] = torch.cat(self._seen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them."""
        if "seen_masks" in checkpoint:
            self._seen = [checkpoint["seen_masks"].to(self.device)]

    def _start(self, split: str) -> None:
        """Forgets what an interrupted evaluation left behind, and reads the annotations of a split."""
        self.mask_iou.reset()
        truth = self.trainer.datamodule.ground_truth(split)  # type: ignore[attr-defined]
        self._annotations = defaultdict(list)
        for record in truth["annotations"]:
            if not record["iscrowd"]:
                self._annotations[record["image_id"]].append(record)

    def _fit(self, network: PrincipalCode) -> None:
        # A process may have had no object.
        nothing = torch.zeros(0, network.size, network.size, dtype=torch.bool, device=self.device)
        seen = torch.cat([nothing, *self._seen])
        if self.trainer.world_size > 1:
            # Each process then finds the same components.
            seen = torch.cat(gather_all_tensors(seen.byte())).bool()
        network.fit(seen[:MOST_FITTED])
        self._seen = []

    def _evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        masks = torch.cat([self._annotated(target) for target in batch["target"]])
        self.mask_iou.update(mask_iou(self.network.masks(self.network.encode(masks)), masks))
        return {"crops": masks}

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
