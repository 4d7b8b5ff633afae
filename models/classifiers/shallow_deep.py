"""Shallow-deep networks: any backbone that is a sequence of stages, with classifiers on its intermediate feature maps.

Reference: "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking", ICML 2019, arXiv 1810.07052.
"""

from collections.abc import Sequence
from typing import Any, Self

import timm
import torch
from timm.layers import Format
from timm.models import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import Tensor, nn
from typing_extensions import override

import models.backbones  # noqa: F401  registers our networks with timm
from models.anytime import iterate
from models.mistakes import Mistake
from models.pixels import state_pretrained


class InternalClassifier(nn.Module):
    """Logits of a feature map: pooled to few cells by a learned mixture of maximum and mean, then one linear layer.

    `y = W norm(s max(x) + (1 - s) mean(x)) + b`, section 4.1 of the paper but for the batch norm, which makes up for
    features whose scale was made for other layers than this one.

    Args:
        in_chans: Channels of the map.
        num_classes: How many classes there are, K.
        cells: Rows and columns of the pooled map.
    """

    def __init__(self, in_chans: int, num_classes: int, cells: int) -> None:
        super().__init__()
        features = in_chans * cells**2
        self.mixture = nn.Parameter(torch.zeros(1))
        self.max_pool, self.mean_pool = nn.AdaptiveMaxPool2d(cells), nn.AdaptiveAvgPool2d(cells)
        self.norm = nn.BatchNorm1d(features)
        self.linear = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """A map [B, in_chans, h, w] to logits [B, K]."""
        share = self.mixture.sigmoid()
        pooled = share * self.max_pool(x) + (1 - share) * self.mean_pool(x)
        logits: Tensor = self.linear(self.norm(pooled.flatten(1)))
        return logits


class ShallowDeepNetwork(nn.Module):
    """A backbone of timm's with a classifier on each of its feature maps; the last one is that of the whole network.

    An inference can stop at any exit (`start`, `advance`), and no later stage has run by then.

    Args:
        backbone: timm's name of the network, ours included.
        num_classes: How many classes there are, K.
        levels: Indices of timm's feature maps that have a classifier, finest first; None for all.
        cells: Rows and columns that a classifier pools its map to; 4 in the paper.
        frozen: Whether the classifiers alone are trained, which the paper calls IC-only, and the backbone stays as its
            weights are, batch norms included.
        pretrained: Whether the backbone starts from timm's weights.
        options: Further arguments of `timm.create_model`.

    Raises:
        Mistake: No such network or levels, or a network that is no sequence of stages.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int = 1000,
        levels: Sequence[int] | None = None,
        cells: int = 4,
        frozen: bool = True,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1 or cells < 1:
            raise Mistake(f"num_classes={num_classes} and cells={cells} must be 1 or more")
        self.num_classes, self.frozen = num_classes, frozen
        body = _sequence(backbone, levels, {"pretrained": pretrained, **(options or {})})
        state_pretrained(body, pretrained, options)
        self.backbone: nn.ModuleDict = body
        # Swin's maps are [B, h, w, channels].
        self.channels_last = body.output_fmt == Format.NHWC
        # Stages that run between an exit and the one before it.
        self.segments: list[list[str]] = [[]]
        for name in body:
            self.segments[-1].append(name)
            if name in body.return_layers:
                self.segments.append([])
        del self.segments[-1]
        channels: list[int] = body.feature_info.channels()
        self.heads = nn.ModuleList(InternalClassifier(each, num_classes, cells) for each in channels)
        self.num_exits = len(self.heads)
        if frozen:
            self.backbone.requires_grad_(False)
            self.train()

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def start(self, images: Tensor) -> dict[str, Tensor]:
        """What the first exit needs (see `models.anytime.MultiExit`): images [B, 3, H, W], as `x`."""
        return {"x": images}

    def advance(self, exit: int, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of an exit, from the map at the exit before.

        Args:
            exit: Number of the exit, 0 .. num_exits - 1.
            state: What came from `start` or from the exit before; maybe of fewer images than then.

        Returns:
            Logits [b, K] and the state of the next exit.
        """
        x = state["x"]
        for name in self.segments[exit]:
            x = self.backbone[name](x)
        return self.heads[exit](x.permute(0, 3, 1, 2) if self.channels_last else x), {"x": x}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to the logits [B, K] of every exit, cheapest first."""
        return list(iterate(self, images))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """The layers as timm's layer decay counts them: the backbone, then the classifiers."""
        return {"backbone": r"^backbone\.", "heads": r"^heads\."}


def _sequence(backbone: str, levels: Sequence[int] | None, options: dict[str, Any]) -> Any:
    """timm's feature extractor of a network as a sequence of stages, which ends with the last map that is asked for."""
    if not timm.is_model(backbone):
        raise Mistake(f"no network is called '{backbone}': timm.list_models() lists all names")
    with torch.device("meta"):
        whole: Any = timm.create_model(backbone, features_only=True, **options | {"pretrained": False})
    available = len(whole.feature_info)
    indices = list(range(available)) if levels is None else list(levels)
    if not indices or indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < available:
        raise Mistake(f"levels are increasing indices of the {available} feature maps of {backbone}: not {levels}")
    if isinstance(whole, EfficientNetFeatures | MobileNetV3Features):
        # timm has a class of its own for them, which does not stop on the way.
        options = options | {"feature_cfg": {"feature_cls": "list", "flatten_sequential": True}}
    elif not isinstance(whole, FeatureListNet):
        raise Mistake(f"{backbone} is not run as a sequence of stages by timm, so it cannot stop after one of them")
    return timm.create_model(backbone, features_only=True, out_indices=tuple(indices), **options)
