"""What a dynamic network decides for which images, drawn by the kind of decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.balances import Balances
from callbacks.reports.classification import MOST_CLASSES
from callbacks.reports.painter import Painter
from callbacks.reports.report import Report
from callbacks.reports.routes import Routes
from callbacks.reports.scales import Scales
from drawing.choices import choices_by_class, kernel_attention
from drawing.exits import exit_sheet
from drawing.figures import SMALL, evenly
from drawing.regions import region_overlay
from lightning_modules.findings import gathered
from lightning_modules.task import Batch, Task
from models import decisions
from models.decisions import Decision

IMAGES_PER_CHOICE = 8


class Decisions(Report):
    """Draws what layers decided in an evaluation, as they say in `models.decisions`.

    - `kernel_attention.png`: mean coefficients of mixtures by class;
    - `regions/<layer>.png`: which option applies where in an image;
    - `resolutions.png` and `resolutions_by_class.png`: which images get which choice;
    - `routes.png`, `routes.csv`, `common_route.yaml`: which ways images take through a grid, see `Routes`;
    - `scales.png`, `scales.csv`: what each scale of a pyramid does for which images, see `Scales`;
    - `balances.png`, `balances.csv`: how layers weigh the branches that they mix, see `Balances`.

    Evaluation by windows or scales decides several times an image and is not looked at; compiled layers say nothing.
    """

    pictures: ClassVar = {
        "kernel_attention.png": "which kernels are mixed for which class",
        "regions": "which kernel is applied where, by layer",
        "resolutions.png": "which images are classified at which resolution",
        "resolutions_by_class.png": "how often, by class",
        "routes.png": "the ways that images take through the grid of cells, and what they cost",
        "scales.png": "what each scale of the pyramid does for which images",
        "balances.png": "what each layer multiplies each of its branches by",
    }
    files: ClassVar = {
        "routes.csv": "how many images take which edge of the grid, and with which weight",
        "common_route.yaml": "the fixed route of what most validation images take, to be trained with --config",
        "scales.csv": "how many images take which option at each scale, and what it costs",
        "balances.csv": "what each head of each layer multiplies each of its branches by",
    }

    @override
    def applies(self, task: LightningModule) -> bool:
        return isinstance(task, Task) and task.costs_one_forward and not task.compile_network

    @override
    def may_log(self, task: LightningModule) -> bool:
        return isinstance(task, Task) and self.applies(task) and bool(decisions.noted(task.network))

    @override
    def start(self) -> None:
        self._painters: dict[str, Painter] = {
            "mixture": Mixtures(self),
            "map": Maps(self),
            "choice": Choices(self),
            "route": Routes(self),
            "levels": Scales(self),
            "balance": Balances(self),
        }

    @override
    def look(self, batch: Batch) -> None:
        decisions.forget(self.task.network)

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        found = decisions.noted(self.task.network)
        samples = len(batch["index"])
        for kind, painter in self._painters.items():
            of_kind = {
                name: decision
                for name, decision in found.items()
                if decision.kind == kind and len(decision.values) == samples
            }
            if of_kind:
                painter.keep(of_kind, batch, outputs)

    @override
    def merge(self) -> None:
        for painter in self._painters.values():
            painter.merge()

    @override
    def metrics(self) -> Mapping[str, float]:
        return {name: value for painter in self._painters.values() for name, value in painter.metrics().items()}

    @override
    def draw(self) -> Mapping[str, Figure]:
        return {name: figure for painter in self._painters.values() for name, figure in painter.draw().items()}

    @override
    def write(self, folder: Path) -> None:
        for painter in self._painters.values():
            painter.write(folder)


class Mixtures(Painter):
    """Mean coefficients of each layer's mixture, by class."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        # Of each layer, sums of coefficients [K, n]; of all, images of each class [K, 1].
        self._sums: dict[str, Tensor] = {}
        self._samples: Tensor | None = None

    @override
    def keep(self, found: Mapping[str, Decision], batch: Batch, outputs: Any) -> None:
        label = batch.get("label")
        if "logits" not in outputs or label is None or label.ndim != 1 or outputs["logits"].shape[1] > MOST_CLASSES:
            return
        member = F.one_hot(label, outputs["logits"].shape[1]).float()
        for name, decision in found.items():
            sums = member.T @ decision.values.float()
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        samples = member.sum(0)[:, None]
        self._samples = samples if self._samples is None else self._samples + samples

    @override
    def merge(self) -> None:
        own = None if self._samples is None else (self._samples.cpu(), {n: s.cpu() for n, s in self._sums.items()})
        given = [each for each in gathered(own) if each is not None]
        if given:
            self._samples = torch.stack([samples for samples, _ in given]).sum(0)
            self._sums = {name: torch.stack([sums[name] for _, sums in given]).sum(0) for name in given[0][1]}

    @override
    def draw(self) -> Mapping[str, Figure]:
        if self._samples is None:
            return {}
        means: dict[str, np.ndarray] = {}
        for name, sums in self._sums.items():
            mean = (sums / self._samples).numpy()
            # Layers that share a routing are one.
            if not any(np.array_equal(mean, other, equal_nan=True) for other in means.values()):
                means[name] = mean
        title = f"{self.report.split}: kernels by class, over {int(self._samples.sum()):,} images"
        return {"kernel_attention": kernel_attention(means, list(self.report.data.class_names), title)}


class Maps(Painter):
    """Which option applies where in the first images, of as many classes as possible; those of the first process.

    Args:
        report: whose evaluation it is.
        images: how many are drawn.
        layers: layers that are drawn, evenly over the network's depth.
    """

    def __init__(self, report: Report, images: int = 6, layers: int = 4) -> None:
        super().__init__(report)
        self.images, self.layers = images, layers
        self._pictures: list[np.ndarray] = []
        self._options: dict[str, int] = {}
        self._maps: dict[str, list[np.ndarray]] = {}
        self._shown: Counter[int] = Counter()

    @override
    def keep(self, found: Mapping[str, Decision], batch: Batch, outputs: Any) -> None:
        data, label = self.report.data, batch.get("label")
        if len(self._pictures) >= self.images or not self.report.trainer.is_global_zero:
            return
        drawn = {name: found[name] for name in evenly(list(found), self.layers)}
        by_class = label is not None and label.ndim == 1
        classes: list[int] = label.tolist() if label is not None and by_class else [0] * len(batch["index"])
        # Splits may be sorted by class.
        most = -(-self.images // len(data.class_names)) if by_class else self.images
        for i, k in enumerate(classes):
            if len(self._pictures) < self.images and self._shown[k] < most:
                self._shown[k] += 1
                self._pictures.append(data.pixels.picture(batch["image"][i]))
                for name, decision in drawn.items():
                    self._options[name] = len(decision.names)
                    self._maps.setdefault(name, []).append(decision.values[i].cpu().numpy())

    @override
    def draw(self) -> Mapping[str, Figure]:
        return {
            f"regions/{name}": region_overlay(
                self._pictures, maps, self._options[name], f"{self.report.split}: regions of {name}"
            )
            for name, maps in self._maps.items()
        }


class Choices(Painter):
    """Which option each image got, and whether it was classified rightly; of one layer."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self._decision: Decision | None = None
        # Index, choice, label and prediction of every image [B, 4].
        self._rows: list[Tensor] = []

    @override
    def keep(self, found: Mapping[str, Decision], batch: Batch, outputs: Any) -> None:
        if "logits" in outputs:
            self._decision = next(iter(found.values()))
            predicted = outputs["logits"].argmax(1)
            self._rows.append(torch.stack([batch["index"], self._decision.values, batch["label"], predicted], 1))

    @override
    def merge(self) -> None:
        own = (self._decision, torch.cat(self._rows).cpu()) if self._rows else None
        given = [each for each in gathered(own) if each is not None]
        if given:
            self._decision = given[0][0]
            rows = torch.cat([each for _, each in given])
            self._rows = [rows[rows[:, 0].argsort()]]

    @override
    def draw(self) -> Mapping[str, Figure]:
        if self._decision is None:
            return {}
        names, costs = list(self.report.data.class_names), self._decision.costs
        options, plural = list(self._decision.names), f"{self._decision.option}s"
        rows = self._rows[0]
        index, choice, label, predicted = rows.unbind(1)
        pictures, captions, hits, texts = [], [], [], []
        for j in sorted(range(len(options)), key=costs.__getitem__):
            there = (choice == j).nonzero().squeeze(1)
            shown = evenly(there.tolist(), IMAGES_PER_CHOICE)
            pictures.append([self.report.data.picture(self.report.split, int(index[i]), SMALL) for i in shown])
            captions.append([names[int(predicted[i])] for i in shown])
            hits.append([bool(predicted[i] == label[i]) for i in shown])
            right = (predicted[there] == label[there]).double().mean().item()
            correct = f", {right:.1%} of them right" if len(there) else ""
            share = len(there) / len(rows)
            texts.append(f"{options[j]} ({costs[j]:.0%} of the compute): {share:.1%} of the images{correct}")
        title = f"{self.report.split}: who is classified at which {self._decision.option}"
        figures = {plural: exit_sheet(pictures, captions, hits, texts, title)}
        if len(names) <= MOST_CLASSES:
            counts = torch.bincount(label * len(options) + choice, minlength=len(names) * len(options))
            counts = counts.view(len(names), len(options))
            title = f"{self.report.split}: {plural} by class, over {len(rows):,} images"
            figures[f"{plural}_by_class"] = choices_by_class(counts.numpy(), names, options, costs, title)
        return figures
