"""What features say of images: which are near each other, how they lie, and where a transformer looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.report import Report
from drawing.features import Captioned, attention_sheet, image_rows, plane
from drawing.figures import SMALL, evenly
from lightning_modules.self_supervised import FeatureFindings, SelfSupervised
from lightning_modules.task import Batch
from models.self_supervised.attention import class_attention, has_class_attention
from models.self_supervised.knn import nearest

RIGHT, WRONG = "#1a7f37", "#b3261e"


class NearestImages(Report):
    """Draws some evaluated images with the training images whose features are nearest.

    Args:
        images: how many, evenly over the split.
        neighbours: of each.
    """

    reads = SelfSupervised
    pictures: ClassVar = {"nearest_images.png": "evaluated images, and the training images nearest to them"}

    def __init__(self, images: int = 8, neighbours: int = 6) -> None:
        self.images, self.neighbours = images, neighbours

    @override
    def draw(self) -> Mapping[str, Figure]:
        found: FeatureFindings = self.task.findings
        known, seen = found.known, found.seen
        chosen = torch.tensor(evenly(range(len(seen["index"])), self.images), device=seen["index"].device)
        similarities, places = nearest(seen[found.side][chosen], known[found.side], self.neighbours)
        rows = []
        for row, own in enumerate(chosen.tolist()):
            label = self._label(seen, own)
            first = Captioned(self._picture(self.split, seen, own), self._said(self.split, seen, own))
            others = []
            for place, similarity in zip(places[row].tolist(), similarities[row].tolist(), strict=True):
                said = f"{self._said('train', known, place)}\n{similarity:.2f}"
                colour = "black" if label is None else RIGHT if self._label(known, place) == label else WRONG
                others.append(Captioned(self._picture("train", known, place), said, colour))
            rows.append([first, *others])
        title = f"{self.split}: on the left, with the nearest training images by the {found.side}'s features"
        return {"nearest_images": image_rows(rows, title)}

    def _picture(self, split: str, features: Mapping[str, Tensor], place: int) -> np.ndarray:
        picture: np.ndarray = self.data.picture(split, int(features["index"][place]), SMALL)
        return picture

    def _label(self, features: Mapping[str, Tensor], place: int) -> int | None:
        return int(features["label"][place]) if "label" in features else None

    def _said(self, split: str, features: Mapping[str, Tensor], place: int) -> str:
        """The class of an image, or its name."""
        label = self._label(features, place)
        if label is not None and label < len(self.data.class_names):
            return str(self.data.class_names[label])
        return self.data.sample_name(split, int(features["index"][place])).rpartition("/")[2]


class Projection(Report):
    """Draws how features lie, brought to a plane by t-SNE; classes have colours.

    Args:
        images: how many, at most, evenly over the split.
    """

    reads = SelfSupervised
    pictures: ClassVar = {"projection.png": "how the features lie: a point for each evaluated image"}

    def __init__(self, images: int = 1000) -> None:
        self.images = images

    @override
    def draw(self) -> Mapping[str, Figure]:
        # It takes a second to be imported, which a command without pictures need not wait for.
        from sklearn.manifold import TSNE

        found: FeatureFindings = self.task.findings
        chosen = evenly(range(len(found.seen["index"])), self.images)
        if len(chosen) < 4:
            return {}
        features = torch.nn.functional.normalize(found.seen[found.side][chosen], dim=1).cpu().numpy()
        # Points that coincide, as collapsed ones do, have no direction to be laid out along.
        start = "pca" if features.std(0).max() > 1e-6 else "random"
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        points = TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(features)
        labels = found.seen["label"][chosen].cpu().numpy() if "label" in found.seen else None
        title = f"{self.split}: {len(chosen):,} images by the {found.side}'s features (t-SNE)"
        return {"projection": plane(points, labels, list(self.data.class_names), title)}


class Attention(Report):
    """Draws where the class token of a vision transformer looks in its last block, by head.

    Args:
        images: how many of the first batch are drawn.
        heads: how many, at most, evenly over all.
    """

    reads = SelfSupervised
    pictures: ClassVar = {"attention.png": "where each head of the last block looks"}

    def __init__(self, images: int = 6, heads: int = 6) -> None:
        self.images, self.heads = images, heads
        self._pictures: list[np.ndarray] = []
        self._maps: list[np.ndarray] = []

    @override
    def applies(self, task: LightningModule) -> bool:
        return super().applies(task) and has_class_attention(self._backbone(task))

    def _backbone(self, task: Any) -> Any:
        return task.network.side(task.sides[0]).backbone

    @override
    def start(self) -> None:
        self._pictures, self._maps = [], []

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        if self._pictures or not self.trainer.is_global_zero:
            return
        images = batch["image"][: self.images]
        shares = class_attention(self._backbone(self.task), images).float()
        self._maps = list(shares[:, evenly(range(shares.shape[1]), self.heads)].cpu().numpy())
        self._pictures = [self.data.pixels.picture(image) for image in images]

    @override
    def draw(self) -> Mapping[str, Figure]:
        title = f"{self.split}: attention of the {self.task.sides[0]}'s class token in the last block"
        return {"attention": attention_sheet(self._pictures, self._maps, title)}
