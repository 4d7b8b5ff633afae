"""Learning from few labels and many images: a classifier, and its teacher that is evaluated."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_modules.classification import Classification
from lightning_modules.internals import step_counts
from lightning_modules.optimization import Quantity
from lightning_modules.task import Batch
from lightning_modules.teachers import tell_if_none_moves
from models.features import Embedder, embedder_of
from models.mistakes import Mistake
from models.processes import gathered_rows
from models.semi_supervised.ctaugment import moved_rates, recognition
from models.semi_supervised.fixmatch import fixmatch_loss
from models.semi_supervised.mean_teacher import consistency_kl, consistency_mse, sigmoid_ramp, tie

_STUDENT = "_student"


class SemiSupervised(Classification):
    """What learning from few labels has in common: streams, and a teacher that is a smoothed copy of the network.

    Batches to train on are those of `datamodules.FewLabels`: `labelled` as in a classification, and `train` with two
    views of unlabelled images. Metrics, predictions and reports are of the teacher, as the papers evaluate;
    `top1_student` is the network's own. What moves the teacher is a callback, `callbacks.Smoothing`.

    Args:
        network: images [B, 3, H, W] -> logits [B, K].
        unlabelled_weight: what the loss of unlabelled images is multiplied by.
        options: see `Classification` and `Task`; mixing and erasing are for labelled batches alone and not used.
    """

    def __init__(self, network: nn.Module, unlabelled_weight: float = 1.0, **options: Any) -> None:
        super().__init__(network, **options)
        self.teacher = deepcopy(network).requires_grad_(False)
        self.unlabelled_weight = unlabelled_weight

    def embedders(self) -> dict[str, Embedder]:
        """What makes features of images, of the teacher, which is judged, and of the student."""
        sides = {"teacher": embedder_of(self.teacher), "student": embedder_of(self.network)}
        return {side: embedder for side, embedder in sides.items() if embedder is not None}

    @override
    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.network, self.teacher)]

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        tell_if_none_moves(self.trainer.callbacks)  # type: ignore[attr-defined]

    @override
    def forward(self, images: Tensor) -> Any:
        """Logits of the network in training, of the teacher in an evaluation."""
        return (self.network if self.training else self.teacher)(self.in_memory_order(images))

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Counts a batch; see `Classification.count`, whose logits are the teacher's."""
        if _STUDENT not in self.evaluation:
            accuracy = MulticlassAccuracy(self.num_classes, average="micro")
            self.evaluation[_STUDENT] = MetricCollection({"top1": accuracy}).to(self.device)
        self.evaluation[_STUDENT]["top1"].update(self.network(*self.inputs(batch)), batch["label"])
        return super().count(batch, split)

    @torch.no_grad()
    def probe(self, labelled: Batch) -> None:
        """Learns from probes of labelled images which strengths of `CTAugment` the teacher still recognises.

        Every process learns from the probes of all, so that their rates stay the same.

        Args:
            labelled: Batch with `probe` and `policy`, or without both.
        """
        rates = getattr(self.data, "rates", None)
        if rates is None or "probe" not in labelled:
            return
        self.teacher.eval()
        logits = self.teacher(self.in_memory_order(labelled["probe"]))
        self.teacher.train()
        bins, values = gathered_rows(labelled["policy"]), gathered_rows(recognition(logits, labelled["label"]))
        rates.learnt = moved_rates(rates.learnt.to(bins.device, non_blocking=True), bins, values, rates.decay)

    @override
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """Images of an evaluation; of a training batch all that there are, labelled ones and both views."""
        if "labelled" not in batch:
            return super().inputs(batch)
        return (self.in_memory_order(torch.cat([batch["labelled"]["image"], *self.views(batch)])),)

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two views [B, 3, H, W] of the unlabelled images of a training batch.

        Raises:
            Mistake: the batch has no such stream, or other views.
        """
        images = batch["train"]["image"] if "train" in batch and "labelled" in batch else None
        if not isinstance(images, list) or len(images) != 1 or len(images[0]) != 2:
            raise Mistake(
                "learning from few labels needs two views of one size of unlabelled images beside the labelled ones: "
                "put the data module into datamodules.FewLabels with two views"
            )
        return images[0][0], images[0][1]


class FixMatch(SemiSupervised):
    """What is sure of a weak view labels the strong one; the views of `FewLabels` are the weak one and the strong one.

    Logs `train/mask_rate`, the share of unlabelled images whose label counts, `train/pseudo_top1`, how many of these
    labels are right, and `train/threshold`.

    Reference: "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", arXiv 2001.07685.

    Args:
        network: images [B, 3, H, W] -> logits [B, K].
        threshold: least probability of a label that counts.
        temperature: what the logits of weak views are divided by.
        labels_from: `student`, the network itself as published, or `teacher`, whose smoothing then takes part in
            learning. A teacher that makes no labels sees no batches: `Smoothing` with `batch_norm: copy` gives it the
            running statistics of its student.
        options: see `SemiSupervised`.

    Raises:
        Mistake: a threshold outside of [0, 1], or labels from neither.
    """

    def __init__(
        self,
        network: nn.Module,
        threshold: float = 0.95,
        temperature: float = 1.0,
        labels_from: Literal["student", "teacher"] = "student",
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        if not 0.0 <= threshold <= 1.0:
            raise Mistake(f"threshold is a probability, from 0 to 1, not {threshold:g}")
        if labels_from not in ("student", "teacher"):
            raise Mistake(f"labels_from is student or teacher, not {labels_from!r}")
        self.threshold, self.temperature, self.labels_from = threshold, temperature, labels_from

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropies of the labelled and of the strong images, with penalties."""
        weak_images, strong_images = self.views(batch)
        labelled = batch["labelled"]
        images, targets = labelled["image"], labelled["label"]
        self.probe(labelled)
        # One forward pass for all: batch norms are over labelled and unlabelled images.
        if self.labels_from == "student":
            logits, weak, strong = self(torch.cat([images, weak_images, strong_images])).split(
                [len(images), len(weak_images), len(strong_images)]
            )
        else:
            logits, strong = self(torch.cat([images, strong_images])).split([len(images), len(strong_images)])
            with torch.no_grad():
                weak = self.teacher(self.in_memory_order(weak_images))
        pseudo, mask = fixmatch_loss(weak, strong, self.threshold, self.temperature)
        losses = {
            "ce": F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing),
            "pseudo": self.unlabelled_weight * pseudo,
        }
        right = (weak.argmax(1) == batch["train"]["label"]).to(mask.dtype)
        metrics = {
            "top1": (logits.argmax(1) == targets).float().mean(),
            "mask_rate": mask.mean(),
            "pseudo_top1": (right * mask).sum() / mask.sum().clamp(min=1),
            "threshold": mask.new_tensor(self.threshold),
        }
        return self.total_loss(losses, metrics, len(images) + len(weak_images))


class MeanTeacher(SemiSupervised):
    """The network agrees with its teacher about all images; of the unlabelled ones each sees a view of its own.

    Both see labelled and unlabelled images in one batch, which their batch norms are over. The weight of the agreement
    rises over the first epochs. The cross-entropy is the mean over the labelled images; the published code divides its
    sum by the images of the whole batch.

    A network with two heads (`ShakeShake`) is compared with labels by the first one and with the teacher's first one by
    the second, and their logits are tied.

    Reference: "Mean teachers are better role models", arXiv 1703.01780.

    Args:
        network: images [B, 3, H, W] -> logits [B, K].
        consistency: `mse` of probabilities or `kl`.
        ramp_epochs: epochs over which the weight rises, exp(-5 (1 - epoch / ramp_epochs)^2).
        tie_weight: what the squared distance of two heads' logits is multiplied by.
        options: see `SemiSupervised`; published runs have an `unlabelled_weight` of 100 with `mse` on CIFAR-10.

    Raises:
        Mistake: an unknown consistency.
    """

    def __init__(
        self,
        network: nn.Module,
        consistency: Literal["mse", "kl"] = "mse",
        ramp_epochs: float = 5.0,
        tie_weight: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        if consistency not in ("mse", "kl"):
            raise Mistake(f"consistency is mse or kl, not {consistency!r}")
        self.consistency = {"mse": consistency_mse, "kl": consistency_kl}[consistency]
        self.ramp_epochs, self.tie_weight = ramp_epochs, tie_weight
        self._weight = self.unlabelled_weight

    @override
    def configure_optimizers(self) -> Optimizer:
        """The optimiser, and what of it and of the loss changes over the steps."""
        optimizer = super().configure_optimizers()
        steps_per_epoch, _ = step_counts(self.trainer)

        def weight(step: int) -> float:
            return self.unlabelled_weight * sigmoid_ramp(step // steps_per_epoch, self.ramp_epochs)

        def put(value: float) -> None:
            self._weight = value

        self.quantities["consistency_weight"] = Quantity(weight, put)
        return optimizer

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of the labelled images and the distance to the teacher, with penalties."""
        own_view, teachers_view = self.views(batch)
        labelled = batch["labelled"]
        images, targets = labelled["image"], labelled["label"]
        self.probe(labelled)
        seen = torch.cat([images, own_view])
        network: Any = self.network
        if getattr(network, "consistency_head", None) is None:
            of_labels = student = self(seen)
        else:
            of_labels, student = network.both_heads(self.in_memory_order(seen))
        with torch.no_grad():
            teacher = self.teacher(self.in_memory_order(torch.cat([images, teachers_view])))
        logits = of_labels[: len(images)]
        losses = {
            "ce": F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing),
            "consistency": self._weight * self.consistency(student, teacher) / len(student),
        }
        if of_labels is not student:
            losses["tie"] = self.tie_weight * tie(of_labels, student) / len(student)
        metrics = {
            "top1": (logits.argmax(1) == targets).float().mean(),
            "teacher_top1": (teacher[len(images) :].argmax(1) == batch["train"]["label"]).float().mean(),
        }
        return self.total_loss(losses, metrics, len(images) + len(own_view))
