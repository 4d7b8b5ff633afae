"""Object detection and instance segmentation: any detector of torchvision's convention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.coco_metrics import CocoEvaluation, CocoReport, ImageResult, Kind
from lightning_modules.parameter_groups import LayerDecay, parameter_groups
from lightning_modules.schedules import Schedule
from lightning_modules.task import Task

Batch = dict[str, Any]


class Detection(Task):
    """Trains a detector on the losses that it returns, and evaluates it by COCO's average precision.

    Batches are dicts of `image` (list of [3, h, w]), `target` (list of dicts; see `models.detectors`) and `index` int64
    [B]. Each evaluation logs COCO's twelve numbers for boxes, `val/box_ap` ..., and for masks, `val/mask_ap` ..., over
    the images that were evaluated, in pixels of the original images; -1 stands where the images have no such object.
    What there is to say beyond numbers is in `report`.

    Args:
        network: in training, images and targets -> dict of weighted scalar losses; in evaluation, images and targets
            -> list of dicts with `boxes` [N, 4] xyxy, `labels` [N], `scores` [N] and, of a network that `has_masks`,
            `masks` bool [N, H, W].
        num_classes: labels; by default what the network says of itself (`network.num_classes`).
        lr_multipliers: what the learning rate is multiplied by for the parameters whose names contain a text; the first
            text that fits counts.
        decay_all: whether weight decay is for norms and biases too, as the DETR family was trained.
        filled_boxes: evaluate filled boxes as masks: the baseline of every mask.
        optimizer, schedule, layer_decay, reference_batch, channels_last: see `Task`.

    Raises:
        ValueError: the network does not say its number of classes, or it differs from the data's; a multiplier that is
            not positive, or fits no parameter.
    """

    monitor_mode = "max"

    def __init__(
        self,
        network: nn.Module,
        num_classes: int | None = None,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        schedule: Schedule | None = None,
        lr_multipliers: dict[str, float] | None = None,
        decay_all: bool = False,
        layer_decay: LayerDecay | None = None,
        filled_boxes: bool = False,
        reference_batch: int | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(network, optimizer, schedule, layer_decay, reference_batch, False, channels_last)
        classes = num_classes if num_classes is not None else getattr(network, "num_classes", None)
        if classes is None:
            raise ValueError(f"{type(network).__name__} has no attribute num_classes: give the task num_classes")
        self.num_classes = int(classes)
        self.lr_multipliers = lr_multipliers or {}
        self.decay_all = decay_all
        self.filled_boxes = filled_boxes
        # Refused here rather than when training begins.
        self.parameter_groups(1.0, 0.0)
        has_masks = bool(getattr(network, "has_masks", False))
        self.kinds: list[Kind] = ["box", "mask"] if has_masks or filled_boxes else ["box"]
        self.monitor = "val/mask_ap" if has_masks else "val/box_ap"
        # Metrics that a learning curve shows, beside the loss.
        self.curves = [f"{kind}_ap" for kind in self.kinds]
        # Of the last evaluation, on the first process.
        self.report: CocoReport | None = None
        self.category_ids: list[int] = []
        self._coco: dict[str, CocoEvaluation] = {}
        self._results: list[ImageResult] = []

    def setup(self, stage: str) -> None:
        """Checks that data and network agree on the classes."""
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        # Prediction can do without the data set, and then takes the checkpoint's.
        self.category_ids = list(getattr(data, "category_ids", [])) or self.category_ids
        classes = getattr(data, "num_classes", self.num_classes)
        if classes != self.num_classes and not (stage == "predict" and not classes):
            raise ValueError(
                f"the network has {self.num_classes} classes but the data has {classes}: set "
                f"model.init_args.network.init_args.num_classes={classes}"
            )

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups by `layer_decay`, `lr_multipliers` and `decay_all`."""
        return parameter_groups(
            self.network,
            lr,
            weight_decay,
            self.layer_decay,
            lr_multipliers=self.lr_multipliers,
            decay_all=self.decay_all,
        )

    def inference_inputs(self, batch: Batch, samples: int) -> tuple[Any, ...]:
        """The first images of an evaluation batch, to measure the network's cost on."""
        return ([image.clone() for image in batch["image"][:samples]],)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The network's losses, with penalties."""
        return self.total_loss(self.network(batch["image"], batch["target"]), {}, len(batch["image"]))

    def on_validation_epoch_start(self) -> None:
        """Forgets what an interrupted validation left behind."""
        self._results = []

    def on_test_epoch_start(self) -> None:
        """Forgets what an interrupted test left behind."""
        self._results = []

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Keeps the batch's predictions for the validation metrics."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Keeps the batch's predictions for the test metrics."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """An `ImageResult` for each image, whose image id is its position, and the positions [B]."""
        return {"index": batch["index"], "results": self._fetch(batch, "predict")}

    def on_validation_epoch_end(self) -> None:
        """Logs COCO's numbers over the validation images of all processes."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Logs COCO's numbers over the test images of all processes."""
        self._log("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the data's category of each label, beside what every task saves."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["category_ids"] = self.category_ids

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what was saved; the data set's categories win where there is a data set."""
        super().on_load_checkpoint(checkpoint)
        self.category_ids = self.category_ids or list(checkpoint.get("category_ids", []))

    def coco(self, split: str) -> CocoEvaluation:
        """The annotations of a split, `val` or `test`, ready for evaluation."""
        if split not in self._coco:
            truth = self.trainer.datamodule.ground_truth(split)  # type: ignore[attr-defined]
            self._coco[split] = CocoEvaluation(truth, self.category_ids, self.kinds)
        return self._coco[split]

    def _evaluate(self, batch: Batch, split: str) -> dict[str, Any]:
        results = self._fetch(batch, split)
        self._results += results
        return {"results": results}

    def _fetch(self, batch: Batch, split: str) -> list[ImageResult]:
        """The predictions for a batch, on the host and with coded masks: pixels would soon fill it."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        targets = batch.get("target")
        predictions = self.network(batch["image"], targets)
        indices = batch["index"].tolist()
        image_ids = indices if split == "predict" else data.image_ids(split)[indices].tolist()
        results = []
        for i, (index, image_id) in enumerate(zip(indices, image_ids, strict=True)):
            size = targets[i].get("original_size") if targets is not None else None
            height, width = size if size is not None else batch["image"][i].shape[-2:]
            name = data.sample_name(split, index)
            result = ImageResult.of(predictions[i], (int(height), int(width)), image_id, index, name, self.filled_boxes)
            if "mask" in self.kinds and result.masks is None:
                raise ValueError(f"{type(self.network).__name__} says that it has masks, but its predictions have none")
            results.append(result)
        return results

    def _log(self, split: str) -> None:
        results, self._results = self._results, []
        strategy = self.trainer.strategy
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            dist.gather_object(results, gathered if self.trainer.is_global_zero else None)
            results = [result for each in gathered for result in each or []]
        metrics: dict[str, float] = {}
        if self.trainer.is_global_zero:
            report = self.coco(split).evaluate(results)
            metrics = report.metrics
            # A trial before training is no evaluation.
            self.report = None if self.trainer.sanity_checking else report
        for name, value in strategy.broadcast(metrics).items():
            # The same on every process; Lightning asks for sync_dist all the same.
            self.log(f"{split}/{name}", value, prog_bar=name in self.curves, sync_dist=True)
