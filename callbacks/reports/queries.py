"""Where a query of a detection transformer looks in an image."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from drawing.detection import Objects, attention_maps, sampling_points
from models.compute import inference
from models.detectors.batching import pad
from models.detectors.postprocess import Detections, to_pixels, top_scores
from models.mistakes import Mistake

Query = Literal["best"] | int


def has_queries(network: nn.Module) -> bool:
    """Whether there are queries to look at."""
    return hasattr(network, "sampling_points") or hasattr(network, "attention_maps")


def draw_query(network: Any, image: Tensor, picture: np.ndarray, query: Query, names: list[str]) -> Figure:
    """Where a query looks: sampling points of deformable attention, maps of dense attention, layer by layer.

    Args:
        network: a network of the DETR family.
        image: what it takes [3, h, w].
        picture: the image before any transform, uint8 [H, W, 3].
        query: its number, or `best`: the one that is surest of what it found.
        names: class names, by label.

    Raises:
        Mistake: a query that the network does not have.
    """
    draw = _points if hasattr(network, "sampling_points") else _maps
    return draw(network, image, picture, query, names)


def _points(network: Any, image: Tensor, picture: np.ndarray, query: Query, names: list[str]) -> Figure:
    with inference(network):
        predictions = network.predict(*pad([image]), all_layers=False)
    logits, boxes = predictions.logits[-1], predictions.boxes[-1]
    number, found = _chosen(query, top_scores(logits, boxes, logits[0].numel()), logits.shape[1], picture)
    points = network.sampling_points(image, number)
    height, width = picture.shape[:2]
    locations = points.locations.float().flatten(1, 3).cpu().numpy() * [width, height]
    weights = points.weights.float().flatten(1).cpu().numpy()
    return sampling_points(picture, locations, weights, found, names, f"query {number}: sampling points")


def _maps(network: Any, image: Tensor, picture: np.ndarray, query: Query, names: list[str]) -> Figure:
    looked = network.attention_maps([image])
    number, found = _chosen(query, looked.detections, looked.weights.shape[3], picture)
    maps = looked.weights[:, 0, :, number].float().mean(1).cpu().numpy()
    return attention_maps(picture, maps, found, names, f"query {number}: attention, mean over the heads")


def _chosen(query: Query, detections: Detections, queries: int, picture: np.ndarray) -> tuple[int, Objects]:
    """The query's number, and what it is surest of."""
    order = detections.queries[0].tolist()
    number = order[0] if query == "best" else int(query)
    if not 0 <= number < queries:
        raise Mistake(f"--query {number}: the network has queries 0 to {queries - 1}")
    first = order.index(number) if number in order else len(order)
    keep = slice(first, first + 1)
    height, width = picture.shape[:2]
    boxes = to_pixels(detections.boxes[0, keep], (height, width)).cpu().numpy()
    scores = detections.scores[0, keep].float().cpu().numpy()
    return number, Objects(boxes, detections.labels[0, keep].cpu().numpy(), scores)
