"""Image classification: any classifier, with one or several exits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_modules.class_count import classes_of
from lightning_modules.exits import ExitWeights, as_exits, exit_suffixes, valid_exit_weights, weights_of
from lightning_modules.exporting import ExitAnswers
from lightning_modules.findings import Findings
from lightning_modules.task import Batch, Task
from models.anytime import MultiExit, Policy, run
from models.mistakes import Mistake


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


class Classification(ExitAnswers, Task):
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
        erase_mixed: whether that comes after mixing, as in timm's training with its prefetching loader.
        exit_weights: what the losses of the exits are multiplied by before they are added up, cheapest first. `sum`
            is 1 for each, as published for most networks with exits; `mean` is 1 / exits, so that a learning rate does
            not depend on how many there are.
        options: see `Task`.

    Raises:
        Mistake: the network does not say its number of classes, or it is below 2 or differs from the data's; weights
            of exits that are negative or, when training begins, not one for each exit.
    """

    monitor = "val/top1"
    monitor_mode = "max"
    shown = ("top1",)
    num_classes: int

    def __init__(
        self,
        network: nn.Module,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        mix: Mix | None = None,
        random_erasing: float = 0.0,
        erase_mixed: bool = False,
        exit_weights: ExitWeights = "mean",
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        self.num_classes = classes_of(network, num_classes)
        if self.num_classes < 2:
            raise Mistake(
                f"num_classes={self.num_classes}: a classifier tells two classes or more apart. Give the data images "
                "of at least two (a folder for each, in an image folder), and the network as many num_classes."
            )
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
        self.alters_images = "mix" if mix is not None else "random_erasing" if random_erasing else None
        self.erase_mixed = erase_mixed
        self.exit_weights = valid_exit_weights(exit_weights)
        self.evaluation: dict[str, MetricCollection] = {}
        # When images leave a network with exits; set by `predict --budget`.
        self.policy: Policy | None = None

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.random_erasing:
            # timm draws the noise on the device that it is told.
            self.erase = RandomErasing(self.random_erasing, mode="pixel", device=self.device)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted cross-entropies of the exits, with penalties."""
        images, targets = batch["image"], batch["label"]
        if self.erase is not None and not self.erase_mixed:
            images = self.erase(images)
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        if self.erase is not None and self.erase_mixed:
            images = self.erase(images)
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

    @override
    def start(self, split: str) -> None:
        for metrics in self.evaluation.values():
            metrics.reset()

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Counts a batch; returns `index`, `label`, the last exit's `logits` and `losses`, and all `exits`' logits."""
        exits = as_exits(self(*self.inputs(batch)))
        target = batch["label"]
        for i, (name, logits) in enumerate(zip(exit_suffixes(len(exits)), exits, strict=True)):
            if logits.shape[1] != self.num_classes:
                raise Mistake(f"exit {i} of the network returns {logits.shape[1]} logits, expected {self.num_classes}")
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

    @override
    def finish(self, split: str) -> Findings:
        # The metrics put the processes together themselves.
        return Findings(
            {
                f"{key}{name}": value
                for name, metrics in self.evaluation.items()
                for key, value in metrics.compute().items()
            }
        )

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Class probabilities [B, K] of the last exit, and the samples' indices [B].

        With a policy, of the exit where each image leaves, and these exits [B]; what follows them is not computed.
        """
        outputs = {"index": batch["index"]}
        if self.policy is None:
            logits = as_exits(self(batch["image"]))[-1]
        else:
            if not isinstance(self.network, MultiExit):
                raise Mistake(f"{type(self.network).__name__} has no exits where images could leave")
            logits, outputs["exit"] = run(self.network, self.in_memory_order(batch["image"]), self.policy)
        return outputs | {"probabilities": logits.float().softmax(1)}

    def _metrics(self) -> MetricCollection:
        metrics: dict[str, Any] = {
            "loss": MeanMetric(nan_strategy="disable"),
            "top1": MulticlassAccuracy(self.num_classes, average="micro"),
        }
        if self.num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(self.num_classes, top_k=5, average="micro")
        return MetricCollection(metrics, compute_groups=False)
