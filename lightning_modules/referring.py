"""Referring expressions: any network that finds the box of what an expression means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou
from typing_extensions import override

from lightning_modules.findings import Findings, gathered
from lightning_modules.task import Batch, Task
from models.decisions import forget, noted
from models.mistakes import Mistake
from models.vqa.referring import Located, referring_losses

# By the published evaluation, a box is right if it overlaps the true one by more than this.
RIGHT = 0.5


@dataclass(frozen=True)
class ReferringFindings(Findings):
    """What an evaluation found, ordered by the expressions' positions in the split; on the host.

    Args:
        metrics: Accuracy, mean IoU and loss.
        index: Positions, int64 [n].
        box: Found, x1, y1, x2, y2 as shares of the image's sides, float32 [n, 4].
        iou: With the true box, float32 [n].
    """

    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    box: Tensor = field(default_factory=lambda: torch.empty(0, 4))
    iou: Tensor = field(default_factory=lambda: torch.empty(0))


class ReferringExpressions(Task):
    """Trains a network that finds what expressions mean.

    Batches are those of `datamodules.referring.Referring`: `question` [B, T], `image` [B, 3, H, W] and `box` [B, 4].
    `accuracy` is the share of expressions whose box overlaps the true one by more than 0.5 (intersection over union),
    `mean_iou` the mean of that.

    Args:
        network: `(questions, images) -> models.vqa.Located`, with an `embedding`.
        options: See `Task`.

    Raises:
        Mistake: When training or an evaluation begins, a network that has vectors of too few words.
    """

    monitor = "val/accuracy"
    monitor_mode = "max"
    shown = ("accuracy", "mean_iou")

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__(network, **options)
        self._rows: list[dict[str, Tensor]] = []

    @override
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        return batch["question"], self.in_memory_order(batch["image"])

    @override
    def forward(self, questions: Tensor, images: Tensor) -> Located:  # type: ignore[override]
        """What cells say of expressions [B, T] about images."""
        return self.network(questions, images)

    def check_words(self) -> None:
        """Checks that the network has a vector for each word of the data.

        Raises:
            Mistake: It has not.
        """
        network: Any = self.network
        has, needs = network.embedding.num_embeddings, len(self.data.vocabulary)
        if has < needs:
            raise Mistake(
                f"the network has vectors of {has} words but the data has {needs} words: set its vocabulary_size to "
                f"{needs} or more"
            )

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.check_words()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss, with penalties."""
        located = self(*self.inputs(batch))
        right = overlaps(located.best, batch["box"]) > RIGHT
        return self.total_loss(
            referring_losses(located, batch["box"]), {"accuracy": right.float().mean()}, len(batch["box"])
        )

    @override
    def start(self, split: str) -> None:
        self.check_words()
        self._rows = []

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Counts a batch; returns `index`, `box` and `iou`."""
        located = self(*self.inputs(batch))
        losses = referring_losses(located, batch["box"])
        loss = torch.stack(list(losses.values())).sum().expand(len(batch["box"]))
        row = {"index": batch["index"], "box": located.best, "iou": overlaps(located.best, batch["box"]), "loss": loss}
        self._rows.append(row)
        return row

    @override
    def finish(self, split: str) -> ReferringFindings:
        own = {name: torch.cat([row[name] for row in self._rows]).cpu() for name in self._rows[0]} if self._rows else {}
        given = [each for each in gathered(own) if each]
        rows = {name: torch.cat([each[name] for each in given]) for name in given[0]}
        rows = {name: values[rows["index"].argsort()] for name, values in rows.items()}
        iou = rows["iou"].double()
        metrics = {"loss": rows.pop("loss").double().mean(), "accuracy": (iou > RIGHT).double().mean()}
        return ReferringFindings({**metrics, "mean_iou": iou.mean()}, **rows)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Boxes [B, 4], how sure of its cell the network is [B], what layers noted, and the samples' indices [B]."""
        forget(self.network)
        located = self(*self.inputs(batch))
        sure = located.logits.float().softmax(1).amax(1)
        return {"index": batch["index"], "box": located.best, "sure": sure, "decisions": noted(self.network)}


def overlaps(found: Tensor, true: Tensor) -> Tensor:
    """Intersection over union of boxes [B, 4] with boxes [B, 4], one by one, [B]."""
    return box_iou(found, true).diagonal()
