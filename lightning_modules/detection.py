"""Object detection and instance segmentation: any detector of torchvision's convention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.class_count import classes_of
from lightning_modules.coco_metrics import CocoEvaluation, ImageResult, Kind
from lightning_modules.exporting import Answer
from lightning_modules.findings import Findings, gathered_on_first, told_by_first
from lightning_modules.task import Batch, Task
from models.layers.resize import resize
from models.mistakes import Mistake


class Detection(Task):
    """Trains a detector on the losses that it returns, and evaluates it by COCO's average precision.

    Batches are dicts of `image` (list of [3, h, w]), `target` (list of dicts; see `models.detectors`) and `index` int64
    [B]. Each evaluation logs COCO's twelve numbers for boxes, `val/box_ap` ..., and for masks, `val/mask_ap` ..., over
    the images that were evaluated, in pixels of the original images; -1 stands where the images have no such object.
    What there is to say beyond numbers is in `findings`, on the first process.

    Args:
        network: in training, images and targets -> dict of weighted scalar losses; in evaluation, images and targets
            -> list of dicts with `boxes` [N, 4] xyxy, `labels` [N], `scores` [N] and, of a network that `has_masks`,
            `masks` bool [N, H, W].
        num_classes: labels; by default what the network says of itself (`network.num_classes`).
        filled_boxes: evaluate filled boxes as masks: the baseline of every mask.
        options: see `Task`.

    Raises:
        Mistake: the network does not say its number of classes, or it differs from the data's; a multiplier that is
            not positive, or fits no parameter.
    """

    monitor_mode = "max"
    num_classes: int

    def __init__(
        self, network: nn.Module, num_classes: int | None = None, filled_boxes: bool = False, **options: Any
    ) -> None:
        super().__init__(network, **options)
        self.num_classes = classes_of(network, num_classes)
        self.filled_boxes = filled_boxes
        has_masks = bool(getattr(network, "has_masks", False))
        self.kinds: list[Kind] = ["box", "mask"] if has_masks or filled_boxes else ["box"]
        self.monitor = "val/mask_ap" if has_masks else "val/box_ap"
        self.shown = self.curves = tuple(f"{kind}_ap" for kind in self.kinds)
        self.category_ids: list[int] = []
        self._coco: dict[tuple[int, str], CocoEvaluation] = {}
        self._results: list[ImageResult] = []

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        # Prediction can do without the data set, and then takes the checkpoint's.
        self.category_ids = list(getattr(self.data, "category_ids", [])) or self.category_ids

    @override
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """Images and, where there are any, the targets that say how large the original images are."""
        return (batch["image"], batch["target"]) if "target" in batch else (batch["image"],)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.total_loss(self.network(*self.inputs(batch)), {}, len(batch["image"]))

    @override
    def start(self, split: str) -> None:
        self._results = []

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Keeps an `ImageResult` for each image, and returns them as `results`."""
        results = self._fetch(batch, split)
        self._results += results
        return {"results": results}

    @override
    def finish(self, split: str) -> Findings:
        results = gathered_on_first(self._results)
        self._results = []
        found = None
        if results is not None:
            found = self.coco(split).evaluate([result for each in results for result in each])
        metrics = told_by_first({} if found is None else dict(found.metrics))
        return Findings(metrics) if found is None else found

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """An `ImageResult` for each image, whose image id is its position, and the positions [B]."""
        return {"index": batch["index"], "results": self._fetch(batch, "predict")}

    @property
    def answers_batches(self) -> bool:
        """Whether the network answers several images by as many objects each (see `models.detectors`)."""
        return hasattr(self.network, "answer")

    def answer(self, images: Tensor) -> Answer:
        """Objects in images [B, 3, H, W], in pixels of these.

        Returns:
            `boxes` [B, N, 4] xyxy, `labels` [B, N], `scores` [B, N], best first, and perhaps `masks` bool [B, N, H, W].
        """
        if self.answers_batches:
            return self.network.answer(images)  # type: ignore[operator]
        (found,) = self.network([images[0]])
        return {name: found[name][None] for name in ("boxes", "labels", "scores", "masks") if name in found}

    def returned(self, answer: Answer, inputs: tuple[Any, ...]) -> list[dict[str, Tensor]]:
        """Objects in each image, in pixels of the original image where its size is known."""
        images, targets = inputs[0], inputs[1] if len(inputs) > 1 else None
        results = []
        for i, image in enumerate(images):
            found = {name: each[i] for name, each in answer.items()}
            size = (int(image.shape[-2]), int(image.shape[-1]))
            original = size if targets is None else tuple(map(int, targets[i].get("original_size", size)))
            if original != size:
                scale = found["boxes"].new_tensor([original[1] / size[1], original[0] / size[0]]).repeat(2)
                found["boxes"] = found["boxes"] * scale
                if "masks" in found:
                    found["masks"] = resize(found["masks"][None].float(), original)[0] >= 0.5
            results.append(found)
        return results

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the data's category of each label, beside what every task saves."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["category_ids"] = self.category_ids

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what was saved; the data set's categories win where there is a data set."""
        super().on_load_checkpoint(checkpoint)
        self.category_ids = self.category_ids or list(checkpoint.get("category_ids", []))

    def coco(self, split: str) -> CocoEvaluation:
        """The annotations of a split, `val` or `test`, ready for evaluation."""
        key = id(self.data), split
        if key not in self._coco:
            category_ids = self.category_ids or list(self.data.category_ids)
            self._coco[key] = CocoEvaluation(self.data.ground_truth(split), category_ids, self.kinds)
        return self._coco[key]

    def _fetch(self, batch: Batch, split: str) -> list[ImageResult]:
        """The predictions for a batch, on the host and with coded masks: pixels would soon fill it."""
        data, targets = self.data, batch.get("target")
        predictions = self.network(*self.inputs(batch))
        indices = batch["index"].tolist()
        image_ids = indices if split == "predict" else data.image_ids(split)[indices].tolist()
        results = []
        for i, (index, image_id) in enumerate(zip(indices, image_ids, strict=True)):
            size = targets[i].get("original_size") if targets is not None else None
            height, width = size if size is not None else batch["image"][i].shape[-2:]
            name = data.sample_name(split, index)
            result = ImageResult.of(predictions[i], (int(height), int(width)), image_id, index, name, self.filled_boxes)
            if "mask" in self.kinds and result.masks is None:
                raise Mistake(f"{type(self.network).__name__} says that it has masks, but its predictions have none")
            results.append(result)
        return results
