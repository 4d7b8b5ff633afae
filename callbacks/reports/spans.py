"""How far the layers of a network look for which kind of question."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.looks import span_mixtures
from callbacks.reports.report import Report
from callbacks.whole_files import write_table
from drawing.questions import spans_by_kind
from lightning_modules.findings import gathered
from lightning_modules.question_answering import QuestionAnswering
from models.decisions import forget, noted


class Spans(Report):
    """Draws and writes the mean share of each span, by layer and kind of question.

    Logs `spans_apart`: how far, at most over all layers, the mean mixtures of two kinds of questions are apart, from 0
    to 1 (half the sum of absolute differences).
    """

    reads = QuestionAnswering
    pictures: ClassVar = {"spans.png": "how far each layer looks for which kind of question"}
    files: ClassVar = {"spans.csv": "the share of each span, by layer and kind of question"}

    def __init__(self) -> None:
        # Of each layer, sums of shares [kinds, spans]; questions of each kind [kinds, 1].
        self._sums: dict[str, Tensor] = {}
        self._counts: Tensor | None = None
        self._names: tuple[str, ...] = ()

    @override
    def applies(self, task: LightningModule) -> bool:
        return super().applies(task) and not getattr(task, "compile_network", False)

    @override
    def may_log(self, task: LightningModule) -> bool:
        return self.applies(task) and bool(span_mixtures(noted(task.network)))  # type: ignore[arg-type]

    @override
    def start(self) -> None:
        self._sums, self._counts, self._names = {}, None, ()

    @override
    def look(self, batch: Any) -> None:
        forget(self.task.network)

    @override
    def keep(self, batch: Any, outputs: Any) -> None:
        found = span_mixtures(noted(self.task.network))
        if not found:
            return
        member = F.one_hot(batch["question_type"], len(self.data.question_types)).float()
        counts = member.sum(0)[:, None]
        self._counts = counts if self._counts is None else self._counts + counts
        for name, decision in found.items():
            self._names = decision.names
            sums = member.T @ decision.values.float()
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    @override
    def merge(self) -> None:
        own = None
        if self._counts is not None:
            own = self._counts.cpu(), {name: sums.cpu() for name, sums in self._sums.items()}, self._names
        given = [each for each in gathered(own) if each is not None]
        if given:
            self._counts = torch.stack([counts for counts, _, _ in given]).sum(0)
            self._sums = {name: torch.stack([sums[name] for _, sums, _ in given]).sum(0) for name in given[0][1]}
            self._names = given[0][2]

    def _means(self) -> dict[str, Tensor]:
        assert self._counts is not None
        return {name: sums / self._counts for name, sums in self._sums.items()}

    @override
    def metrics(self) -> Mapping[str, float]:
        if self._counts is None:
            return {}
        there = self._counts.flatten() > 0
        apart = [torch.cdist(mean[there], mean[there], p=1).max() / 2 for mean in self._means().values()]
        return {"spans_apart": float(torch.stack(apart).max())}

    @override
    def draw(self) -> Mapping[str, Figure]:
        if self._counts is None:
            return {}
        kinds = [name or "any question" for name in self.data.question_types]
        layers = {f"layer {i}": mean.numpy() for i, mean in enumerate(self._means().values(), 1)}
        title = f"{self.split}: how far each layer looks, over {int(self._counts.sum()):,} questions"
        return {"spans": spans_by_kind(layers, kinds, self._names, title)}

    @override
    def write(self, folder: Path) -> None:
        if self._counts is None:
            return
        rows = [["split", "layer", "kind", *self._names]]
        for layer, mean in self._means().items():
            for kind, shares in zip(self.data.question_types, mean.tolist(), strict=True):
                rows.append([self.split, layer, kind, *(f"{share:.4f}" for share in shares)])
        write_table(folder / "spans.csv", rows)
