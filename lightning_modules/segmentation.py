"""Semantic segmentation: any segmenter, with one or several exits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.calibration import confidence_counts
from lightning_modules.class_count import classes_of
from lightning_modules.exits import ExitWeights, as_exits, countable, run_and_count, valid_exit_weights, weights_of
from lightning_modules.exporting import Answer, ExitAnswers
from lightning_modules.findings import Findings
from lightning_modules.segmentation_losses import VOID, Normalisation, Ohem, cross_entropy, ohem_cross_entropy
from lightning_modules.segmentation_metrics import Absent, SegmentationFindings, Tally
from lightning_modules.segmentation_views import ExitLook, MultiScale, SlidingWindow
from lightning_modules.task import Batch, Task
from models.anytime import Deadline, MultiExit, each_exit
from models.compute import inference
from models.decisions import forget, noted
from models.layers.resize import resize
from models.mistakes import Mistake
from models.segmenters.inference import (
    DIVISOR,
    multi_scale,
    padded,
    sliding_window,
    unpadded,
)

# Logits at the size of a file that are held at once: half a gigabyte of them.
BAND = 1 << 27


class Segmentation(ExitAnswers, Task):
    """Trains a segmenter with cross-entropy, and evaluates it by mean intersection over union.

    Batches are dicts of `image` [B, 3, H, W], `label` [B, h, w] with 255 for void, and `index` int64 [B]; in evaluation
    labels may have another size than images, and logits are resized to it. Classes are weighted as the data says
    (`class_weights` of the data module). A network that returns a list of logits (cheapest exit first) is trained on
    the losses of all exits.

    An evaluation logs, over all images of all processes, `miou`, `pixel_accuracy`, `class_accuracy`, `loss` (mean over
    images of the cross-entropy) and `macs`: multiply-adds an image of the operators that ran, the mean over the split.
    Exits before the last have them as `miou_exit0` ...; `miou_mean` is the mean over the exits. Networks that skip
    pixels also have `published_macs`, the same as their paper counts it, and, of the last exit, `macs_saved` and
    `published_macs_saved`, shares of what computing every pixel takes. Exits of a `models.anytime.MultiExit` have
    `calibration_error` (see `lightning_modules.calibration`), and those with a threshold `sure_share` and
    `sure_accuracy`: the share of the pixels that they are sure of, and how many of those are right. What there is to
    say beyond numbers is in `findings`. A compiled network's operators cannot be counted, so it has no `macs`.

    Images whose sides are no multiples of the network's `size_divisor` (32 where it does not say) are padded with zeros
    at the bottom and at the right, and what is predicted there is cut off.

    Args:
        network: images [B, 3, H, W] -> logits [B, C, H, W], or a list of them, one per exit. Exits of a
            `models.anytime.MultiExit` are evaluated one by one.
        num_classes: C; by default what the network says of itself (`network.num_classes`).
        ohem: train the last exit on hard pixels only.
        normalisation: what cross-entropy is divided by, see `segmentation_losses.cross_entropy`.
        exit_weights: what the losses of the exits are multiplied by, cheapest first: `sum` for 1 each, `mean` for
            1 / exits, or a number for each.
        absent: whether classes that do not occur are excluded from mean scores or count as zero, see
            `segmentation_metrics.scores`.
        sliding_window: evaluate by windows; by default whole images.
        multi_scale: evaluate by several sizes of each image; by windows in each, if these are given.
        write_labels: let `validate`, `test` and `predict` write a PNG of label ids for each image.
        options: see `Task`.

    Raises:
        Mistake: the network does not say its number of classes, or it differs from the data's; weights of exits or
            class weights that do not fit; an unknown choice.
    """

    monitor = "val/miou"
    monitor_mode = "max"
    shown = ("miou",)
    num_classes: int
    class_weights: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        num_classes: int | None = None,
        ohem: Ohem | None = None,
        normalisation: Normalisation = "weights",
        exit_weights: ExitWeights = "sum",
        absent: Absent = "exclude",
        sliding_window: SlidingWindow | None = None,
        multi_scale: MultiScale | None = None,
        write_labels: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        if normalisation not in ("weights", "pixels"):
            raise Mistake(f"normalisation must be one of weights, pixels, not {normalisation!r}")
        if absent not in ("exclude", "zero"):
            raise Mistake(f"absent must be one of exclude, zero, not {absent!r}")
        self.num_classes = classes_of(network, num_classes)
        self.ohem = ohem
        self.normalisation = normalisation
        self.exit_weights = valid_exit_weights(exit_weights)
        self.absent: Absent = absent
        self.sliding_window = sliding_window
        self.multi_scale = multi_scale
        self.write_labels = write_labels
        self.size_divisor = int(getattr(network, "size_divisor", DIVISOR))
        # The data's, which it says again in every run.
        self.register_buffer("class_weights", None, persistent=False)
        # How long `predict` may compute on an image; set by `predict --deadline-ms`.
        self.deadline: Deadline | None = None
        # What this process has counted of the last evaluation.
        self.tally = Tally()

    @override
    def setup(self, stage: str) -> None:
        """Also takes the data's class weights."""
        super().setup(stage)
        if stage == "predict" or self.class_weights is not None:
            return
        weights = getattr(self.data, "class_weights", None)
        if weights is not None:
            if len(weights) != self.num_classes:
                raise Mistake(f"the data has {len(weights)} class weights for {self.num_classes} classes")
            self.class_weights = torch.tensor(weights, dtype=torch.float32, device=self.device)

    @property
    @override
    def costs_one_forward(self) -> bool:
        # Windows, scales and deadlines cost something else.
        return self.sliding_window is None and self.multi_scale is None and self.deadline is None

    @override
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """Images whose sides are what the network needs."""
        return (self._padded(batch["image"]),)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted losses of the exits, with penalties."""
        label = batch["label"]
        exits = as_exits(self(batch["image"]))
        weights = weights_of(self.exit_weights, len(exits), self.network)
        named = {}
        for i, (logits, weight) in enumerate(zip(exits, weights, strict=True)):
            last = i == len(exits) - 1
            if self.ohem is not None and last:
                loss = ohem_cross_entropy(logits, label, self.ohem, self.class_weights)
            else:
                loss = cross_entropy(logits, label, self.class_weights, self.normalisation, over_processes=True)
            named["ce" if len(exits) == 1 else f"exit{i}"] = loss * weight
        with torch.no_grad():
            right = (_classes(resize(exits[-1], label.shape[-2:])) == label).sum()
            metrics = {"pixel_accuracy": right / (label != VOID).sum().clamp(min=1)}
        return self.total_loss(named, metrics, len(label))

    @override
    def start(self, split: str) -> None:
        self.tally = Tally()

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Counts a batch; returns `index`, and `predicted`, the classes of each image's pixels, uint8 [h, w]."""
        return {"index": batch["index"], "predicted": self.count_into(self.tally, batch)}

    @override
    def finish(self, split: str) -> Findings:
        tally = self.tally.over_processes()
        return SegmentationFindings.of(tally, list(self.data.class_names), self.absent) if tally.images else Findings()

    def count_into(self, tally: Tally, batch: Batch, everything: bool = True) -> list[Tensor]:
        """Evaluates a batch as the network is now.

        Args:
            tally: Gets what is found.
            batch: A batch as evaluations get it.
            everything: Whether the loss and how sure exits are is counted, too, which takes as long as the rest.

        Returns:
            The last exit's classes of each image's pixels, uint8 [h, w].
        """
        predictions = []
        has_exits = isinstance(self.network, MultiExit)
        for exits, label in zip(self._each_image(batch["image"], tally), batch["label"], strict=True):
            for exit, logits in enumerate(exits):
                logits = resize(logits, label.shape)
                loss = cross_entropy(logits, label[None], self.class_weights) if everything else 0.0
                predicted = _classes(logits)[0]
                tally.count(exit, predicted, label, self.num_classes, loss)
                if everything and has_exits:
                    tally.calibrate(exit, confidence_counts(logits, predicted, label, self._threshold(exit)))
            tally.images += 1
            predictions.append(predicted)
        return predictions

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Classes of each image's pixels, uint8 [h, w] at the size of its file, and the images' indices [B].

        With a deadline, of the last exit that was ready, with its number and the seconds it took.
        """
        data = self.data
        sizes = [data.image_size("predict", index) for index in batch["index"].tolist()]
        outputs: dict[str, Any] = {"index": batch["index"], "predicted": []}
        if self.deadline is None:
            for exits, size in zip(self._each_image(batch["image"]), sizes, strict=True):
                *_, last = exits
                outputs["predicted"].append(_classes_of_file(last, size).cpu())
            return outputs
        outputs |= {"exit": [], "seconds": []}
        for image, size in zip(batch["image"].split(1), sizes, strict=True):
            logits, exit, seconds = self.deadline.run(self.network, self._padded(image))
            outputs["predicted"].append(_classes_of_file(self._unpadded(logits, image), size).cpu())
            outputs["exit"].append(exit)
            outputs["seconds"].append(seconds)
        return outputs

    @override
    def answer(self, images: Tensor) -> Answer:
        """Logits [B, C, h, w] of each exit at the network's resolution, of images [B, 3, H, W] of any size."""
        found = super().answer(self._padded(images))
        return {name: self._unpadded(logits, images) for name, logits in found.items()}

    @torch.no_grad()
    def look(self, image: Tensor, size: Sequence[int]) -> list[ExitLook]:
        """What each exit makes of a whole image, to be drawn.

        Args:
            image: [3, H, W], normalised.
            size: Height and width of what is returned.
        """
        forget(self.network)
        with inference(self.network):
            exits = list(each_exit(self.network, self._padded(image[None])))
        decision = noted(self.network).get("")
        computed: Sequence[Tensor | None] = [None] * len(exits)
        if decision is not None and decision.kind == "exit":
            # The first exit is computed everywhere.
            computed = [None, *decision.values.unbind(1)[1:]]
        looks = []
        for logits, where in zip(exits, computed, strict=True):
            probabilities, predicted = resize(self._unpadded(logits, image), size)[0].softmax(0).max(0)
            share = None
            if where is not None:
                share = resize(self._unpadded(where[:, None], image), size)[0, 0]
            looks.append(ExitLook(predicted.to(torch.uint8), probabilities, share))
        return looks

    def _padded(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] as large as the network takes them, in its memory order."""
        return padded(self.in_memory_order(images), self.size_divisor)

    def _unpadded(self, maps: Tensor, images: Tensor) -> Tensor:
        """What the network says of padded images, [B, C, H, W] of the images before."""
        return unpadded(maps, images.shape[-2:], self.size_divisor)

    def _threshold(self, exit: int) -> float | None:
        """The probability from which an exit is sure of a pixel; None if it has none or goes by something else."""
        thresholds = getattr(self.network, "thresholds", ())
        by_probability = getattr(self.network, "criterion", None) == "max_prob"
        return thresholds[exit] if by_probability and exit < len(thresholds) else None

    def _each_image(self, images: Tensor, tally: Tally | None = None) -> Iterator[Iterable[Tensor]]:
        """For each image the logits [1, C, H, W] of every exit; one at a time, as those of a batch would be large."""
        if self.sliding_window is None and self.multi_scale is None:
            exits = self._run(images, tally)
            for i in range(len(images)):
                yield (self._unpadded(logits[i : i + 1], images) for logits in exits)
            return
        for image in images.split(1):
            yield self._views(image, tally)

    def _run(self, images: Tensor, tally: Tally | None) -> list[Tensor]:
        """Logits of every exit for padded images, at the network's resolution; counts what ran."""
        images = self._padded(images)
        # Predictions are timed, and counting takes time.
        if tally is None or self.compile_network or not countable(self.network):
            exits = list(each_exit(self.network, images))
        else:
            exits, spent = run_and_count(self.network, images)
            tally.spend(len(images), spent)
        for exit, logits in enumerate(exits):
            if logits.shape[1] != self.num_classes:
                raise Mistake(
                    f"exit {exit} of the network returns {logits.shape[1]} logits, expected {self.num_classes}"
                )
        return exits

    def _views(self, image: Tensor, tally: Tally | None) -> list[Tensor]:
        """Logits of every exit for one image, by windows and scales."""

        def predict(view: Tensor) -> list[Tensor]:
            return [self._unpadded(logits, view) for logits in self._run(view, tally)]

        window, scales = self.sliding_window, self.multi_scale
        if scales is None:
            assert window is not None
            return sliding_window(predict, image, window.crop, window.stride)
        crop, stride = (window.crop, window.stride) if window is not None else (None, None)
        averaged = multi_scale(predict, image, scales.scales, scales.flip, scales.average, crop=crop, stride=stride)
        # Softmax gives the probabilities back.
        return [scores.clamp(min=torch.finfo(scores.dtype).tiny).log() for scores in averaged]


def _classes(logits: Tensor) -> Tensor:
    """The likeliest class of each pixel, uint8 [B, H, W]."""
    # argmax takes ten times as long on a CPU where channels come first.
    return logits.max(1).indices.to(torch.uint8)


def _classes_of_file(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The likeliest class of each pixel of a file, uint8 [H, W], in bands where the logits of all would be gigabytes.

    Args:
        logits: [1, C, h, w].
        size: H and W.
    """
    height, width = size
    rows = max(1, BAND // (logits.shape[1] * width))
    if rows >= height:
        return _classes(resize(logits, size))[0]
    # What resizing does along the columns, for some rows at a time.
    source = ((torch.arange(height, device=logits.device) + 0.5) * (logits.shape[2] / height) - 0.5).clamp(min=0)
    low = source.floor().long().clamp(max=logits.shape[2] - 1)
    high = (low + 1).clamp(max=logits.shape[2] - 1)
    weight = (source - low).to(logits.dtype)[:, None]
    bands = []
    for band in torch.arange(height, device=logits.device).split(rows):
        stretched = torch.lerp(logits[:, :, low[band]], logits[:, :, high[band]], weight[band])
        bands.append(_classes(resize(stretched, (len(band), width)))[0])
    return torch.cat(bands)
