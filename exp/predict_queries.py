"""`predict --query`: where a query of a detection transformer looks in each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.detection_drawing import Objects, attention_maps, sampling_points
from callbacks.drawing import save
from exp.cli import Cli, UsageError
from exp.predict_detection import picture_name
from models.compute import inference
from models.detectors.batching import pad
from models.detectors.postprocess import Detections, to_pixels, top_scores

Query = Literal["best"] | int


def query_pictures(cli: Cli, names: list[str], folder: Path) -> QueryPictures:
    """What draws the queries of `--query`.

    Args:
        cli: the command.
        names: of the classes; empty for a checkpoint that does not say.
        folder: where the pictures go.

    Raises:
        UsageError: the network has no queries to look at.
    """
    network = cli.model.network
    if not (hasattr(network, "sampling_points") or hasattr(network, "attention_maps")):
        raise UsageError(
            f"--query: {type(network).__name__} has no queries that look somewhere; leave --query out, or use a "
            "network of the DETR family"
        )
    return QueryPictures(cli.config.query, names or [f"class {i}" for i in range(cli.model.num_classes)], folder)


class QueryPictures(Callback):
    """Draws where a query looks: sampling points of deformable attention, maps of dense attention, layer by layer.

    Args:
        query: its number, or `best`: of each image the one that is surest of what it found.
        names: of the classes.
        folder: where the pictures go.
    """

    def __init__(self, query: Query, names: list[str], folder: Path) -> None:
        self.query = query
        self.names = names
        self.folder = folder

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the images of the batch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        network: nn.Module = pl_module.network  # type: ignore[assignment]
        draw = self._points if hasattr(network, "sampling_points") else self._maps
        for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            figure = draw(network, image, data.raw_image("predict", index))
            save(figure, self.folder / picture_name(data, index))

    def _points(self, network: Any, image: Tensor, picture: np.ndarray) -> Figure:
        with inference(network):
            predictions = network.predict(*pad([image]), all_layers=False)
        logits, boxes = predictions.logits[-1], predictions.boxes[-1]
        query, found = self._chosen(top_scores(logits, boxes, logits[0].numel()), logits.shape[1], picture)
        points = network.sampling_points(image, query)
        height, width = picture.shape[:2]
        locations = points.locations.float().flatten(1, 3).cpu().numpy() * [width, height]
        weights = points.weights.float().flatten(1).cpu().numpy()
        return sampling_points(picture, locations, weights, found, self.names, f"query {query}: sampling points")

    def _maps(self, network: Any, image: Tensor, picture: np.ndarray) -> Figure:
        looked = network.attention_maps([image])
        query, found = self._chosen(looked.detections, looked.weights.shape[3], picture)
        maps = looked.weights[:, 0, :, query].float().mean(1).cpu().numpy()
        return attention_maps(picture, maps, found, self.names, f"query {query}: attention, mean over the heads")

    def _chosen(self, detections: Detections, queries: int, picture: np.ndarray) -> tuple[int, Objects]:
        """The query's number, and what it is surest of."""
        order = detections.queries[0].tolist()
        query = order[0] if self.query == "best" else int(self.query)
        if not 0 <= query < queries:
            raise ValueError(f"--query {query}: the network has queries 0 to {queries - 1}")
        first = order.index(query) if query in order else len(order)
        keep = slice(first, first + 1)
        height, width = picture.shape[:2]
        boxes = to_pixels(detections.boxes[0, keep], (height, width)).cpu().numpy()
        return query, Objects(
            boxes, detections.labels[0, keep].cpu().numpy(), detections.scores[0, keep].float().cpu().numpy()
        )
