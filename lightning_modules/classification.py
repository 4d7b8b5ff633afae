"""Image classification: any classifier, with one or several exits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.exits import ExitWeights, as_exits, checked, weights_of
from lightning_modules.parameter_groups import LayerDecay
from lightning_modules.schedules import Schedule
from lightning_modules.task import Task
from models.anytime import MultiExit, Policy, run


@dataclass
class Mix:
    """Mixes pairs of images and their labels: mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899), by timm.

    Args:
        mixup: alpha of mixup's Beta distribution; 0 turns it off.
        cutmix: alpha of cutmix's Beta distribution; 0 turns it off.
        prob: share of the batches (or pairs, or samples) that are mixed.
        switch_prob: with both on, the share that gets cutmix.
        mode: one draw per batch, per pair or per sample.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"


class Classification(Task):
    """Trains and evaluates a classifier with cross-entropy.

    Batches are dicts of `image` [B, 3, H, W], `label` int64 [B] and `index` int64 [B]. A network that returns a list
    of logits (cheapest exit first) is trained on the losses of all exits, and metrics are logged per exit; the names
    without an exit number are those of the last exit.

    Args:
        network: images [B, 3, H, W] -> logits [B, K], or a list of them, one per exit.
        num_classes: K; by default what the network says of itself (`network.num_classes`).
        label_smoothing: share of the target spread evenly over all classes.
        mix: mixup and cutmix; label smoothing is then folded into the mixed targets.
        random_erasing: probability of replacing a rectangle of an image with noise (arXiv 1708.04896).
        exit_weights: what the losses of the exits are multiplied by before they are added up, cheapest first. `sum`
            is 1 for each, as published for most networks with exits; `mean` is 1 / exits, so that a learning rate does
            not depend on how many there are.
        optimizer, schedule, layer_decay, reference_batch, compile, channels_last: see `Task`.

    Raises:
        ValueError: the network does not say its number of classes, or it differs from the data's; weights of exits that
            are negative or, when training begins, not one for each exit.
    """

    monitor = "val/top1"
    monitor_mode = "max"

    def __init__(
        self,
        network: nn.Module,
        num_classes: int | None = None,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        schedule: Schedule | None = None,
        label_smoothing: float = 0.0,
        mix: Mix | None = None,
        random_erasing: float = 0.0,
        exit_weights: ExitWeights = "mean",
        layer_decay: LayerDecay | None = None,
        reference_batch: int | None = None,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(network, optimizer, schedule, layer_decay, reference_batch, compile, channels_last)
        classes = num_classes if num_classes is not None else getattr(network, "num_classes", None)
        if classes is None:
            raise ValueError(f"{type(network).__name__} has no attribute num_classes: give the task num_classes")
        self.num_classes = int(classes)
        self.label_smoothing = label_smoothing
        self.mix: Mixup | None = None
        if mix is not None:
            self.mix = Mixup(
                mixup_alpha=mix.mixup,
                cutmix_alpha=mix.cutmix,
                prob=mix.prob,
                switch_prob=mix.switch_prob,
                mode=mix.mode,
                label_smoothing=label_smoothing,
                num_classes=self.num_classes,
            )
        self.erase: RandomErasing | None = None
        self.random_erasing = random_erasing
        self.exit_weights = checked(exit_weights)
        self.evaluation: dict[str, MetricCollection] = {}
        # When images leave a network with exits; set by `predict --budget`.
        self.policy: Policy | None = None

    def setup(self, stage: str) -> None:
        """Checks that data and network agree on the classes, and prepares what runs on the device."""
        super().setup(stage)
        data_classes = getattr(self.trainer.datamodule, "num_classes", self.num_classes)  # type: ignore[attr-defined]
        if data_classes != self.num_classes:
            raise ValueError(
                f"the network has {self.num_classes} classes but the data has {data_classes}: set "
                f"model.init_args.network.init_args.num_classes={data_classes}"
            )
        if self.random_erasing:
            # timm draws the noise on the device that it is told.
            self.erase = RandomErasing(self.random_erasing, mode="pixel", device=self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The weighted cross-entropies of the exits, with penalties."""
        images, targets = batch["image"], batch["label"]
        if self.erase is not None:
            images = self.erase(images)
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        exits = as_exits(self(images))
        smoothing = 0.0 if self.mix else self.label_smoothing
        losses = [F.cross_entropy(logits.float(), targets, label_smoothing=smoothing) for logits in exits]
        weights = weights_of(self.exit_weights, len(losses), self.network)
        weighted = [loss * weight for loss, weight in zip(losses, weights, strict=True)]
        named = {"ce" if len(exits) == 1 else f"exit{i}": loss for i, loss in enumerate(weighted)}
        metrics = {}
        if self.mix is None:
            metrics["top1"] = (exits[-1].argmax(1) == targets).float().mean()
        return self.total_loss(named, metrics, len(images))

    def on_validation_epoch_start(self) -> None:
        """Forgets what an interrupted validation left behind."""
        self._reset()

    def on_test_epoch_start(self) -> None:
        """Forgets what an interrupted test left behind."""
        self._reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Counts the batch into the validation metrics."""
        return self._evaluate(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Counts the batch into the test metrics."""
        return self._evaluate(batch)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Class probabilities [B, K] of the last exit, and the samples' indices [B].

        With a policy, of the exit where each image leaves, and these exits [B]; what follows them is not computed.
        """
        outputs = {"index": batch["index"]}
        if self.policy is None:
            logits = as_exits(self(batch["image"]))[-1]
        else:
            if not isinstance(self.network, MultiExit):
                raise ValueError(f"{type(self.network).__name__} has no exits where images could leave")
            logits, outputs["exit"] = run(self.network, self.in_memory_order(batch["image"]), self.policy)
        return outputs | {"probabilities": logits.float().softmax(1)}

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics over all samples of all processes."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics over all samples of all processes."""
        self._log("test")

    def _reset(self) -> None:
        for metrics in self.evaluation.values():
            metrics.reset()

    def _evaluate(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        exits = as_exits(self(batch["image"]))
        target = batch["label"]
        for i, logits in enumerate(exits):
            if logits.shape[1] != self.num_classes:
                raise ValueError(
                    f"exit {i} of the network returns {logits.shape[1]} logits, expected {self.num_classes}"
                )
            name = "" if i == len(exits) - 1 else f"_exit{i}"
            if name not in self.evaluation:
                self.evaluation[name] = self._metrics().to(logits.device)
            losses = F.cross_entropy(logits.float(), target, reduction="none")
            metrics = self.evaluation[name]
            metrics["loss"].update(losses)
            metrics["top1"].update(logits, target)
            if "top5" in metrics:
                metrics["top5"].update(logits, target)
        return {
            "index": batch["index"],
            "label": target,
            "logits": exits[-1].float(),
            "losses": losses,
            "exits": exits,
        }

    def _metrics(self) -> MetricCollection:
        metrics: dict[str, Any] = {
            "loss": MeanMetric(nan_strategy="disable"),
            "top1": MulticlassAccuracy(self.num_classes, average="micro"),
        }
        if self.num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(self.num_classes, top_k=5, average="micro")
        return MetricCollection(metrics, compute_groups=False)

    def _log(self, split: str) -> None:
        for name, metrics in self.evaluation.items():
            for key, value in metrics.compute().items():
                # Already reduced over the processes; Lightning asks for sync_dist all the same.
                self.log(f"{split}/{key}{name}", value, prog_bar=key == "top1" and not name, sync_dist=True)
