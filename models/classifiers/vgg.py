"""VGGs as they are pruned, for small images and for ImageNet's, at the published widths or any others.

Reference: "Rethinking the Value of Network Pruning", arXiv 1810.05270, and the methods that it compares: L1-norm
(1608.08710), ThiNet (1707.06342), regression (1707.06168) and Network Slimming (1708.06519).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.he_normal import he_normal
from models.mistakes import Mistake
from models.pruning.norm_channels import NormChannels

# Channels of each 3x3 convolution; M halves the resolution.
Widths = Sequence[int | str]


def _five(*stages: Sequence[int], last: bool = False) -> Widths:
    joined: list[int | str] = []
    for stage in stages:
        joined += [*stage, "M"]
    return joined if last else joined[:-1]


_VGG16 = (64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3
_THINET = (32,) * 2, (64,) * 2, (128,) * 3, (256,) * 3, (512,) * 3
WIDTHS: dict[str, Widths] = {
    "vgg11": _five((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg16": _five(*_VGG16),
    "vgg16_l1_a": _five((32, 64), *_VGG16[1:3], (256,) * 3, (256,) * 3),
    "vgg19": _five((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
    "vgg16_thinet_gap": _five(*_THINET),
    "vgg16_thinet_tiny": _five((16,) * 2, (32,) * 2, (64,) * 3, (128,) * 3, (128, 128, 256)),
    "vgg11_imagenet": _five((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2, last=True),
    "vgg16_imagenet": _five(*_VGG16, last=True),
    "vgg16_thinet_conv": _five(*_THINET, last=True),
    "vgg16_regression_5x": _five((24, 22), (41, 51), (108, 89, 111), (184, 276, 228), (512,) * 3, last=True),
}


class VGG(nn.Module):
    """3x3 convolutions with norms, halved in resolution in between, pooled to one value a channel, and a classifier.

    Args:
        widths: Channels of each convolution with `M` between those that the resolution is halved between, or a name
            of published ones, such as `vgg16` and `vgg16_l1_a`.
        num_classes: Classes, K.
        hidden: Width of a linear layer with a norm before the last one, 512 in the study of L1-norms; 0 for none.
        bias: Whether convolutions have biases, as in the studies of single weights.
        gamma: Where the scales of norms start: 0.5 in the studies of L1-norms and slimming.
        fan: What the variance of convolutions follows from at the start: `fan_in` in the studies of single weights.
        in_chans: Channels of the images.

    Raises:
        Mistake: There are no such widths.
    """

    def __init__(
        self,
        widths: str | Sequence[int | str] = "vgg16",
        num_classes: int = 10,
        hidden: int = 0,
        bias: bool = False,
        gamma: float = 1.0,
        fan: Literal["fan_in", "fan_out"] = "fan_out",
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.widths = _published(widths)
        self.trunk, self.num_features = _trunk(self.widths, in_chans, bias, norm=True)
        he_normal(self, gamma, fan)
        self.classifier: nn.Module = nn.Linear(hidden or self.num_features, num_classes)
        if hidden:
            before = nn.Linear(self.num_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)
            self.classifier = nn.Sequential(*before, self.classifier)
        _start_linear(self.classifier)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, K]."""
        return self.classifier(F.adaptive_avg_pool2d(self.trunk(images), 1).flatten(1))

    def norm_channels(self) -> list[NormChannels]:
        """Every norm on a map, with the convolutions before and behind it."""
        convs = [f"trunk.{i}" for i, layer in enumerate(self.trunk) if isinstance(layer, nn.Conv2d)]
        norms = [f"trunk.{i}" for i, layer in enumerate(self.trunk) if isinstance(layer, nn.BatchNorm2d)]
        last = "classifier" if isinstance(self.classifier, nn.Linear) else "classifier.0"
        return [NormChannels(*names) for names in zip(norms, [*convs[1:], last], convs, strict=True)]


class ImageNetVGG(nn.Module):
    """The VGGs of large images, which read 7 x 7 values a channel with linear layers.

    Args:
        widths: As in `VGG`; of published ones `vgg16_imagenet`, `vgg16_thinet_conv`, `vgg16_thinet_gap` ...
        num_classes: Classes, K.
        hidden: Widths of the linear layers before the last one; none for a global average in place of 7 x 7 values.
        norm: Whether norms follow the convolutions.
        hidden_norm: Whether norms follow the hidden layers, where Network Slimming prunes them, rather than dropout.
        gamma: Where the scales of the norms on maps start.
        in_chans: Channels of the images.

    Raises:
        Mistake: There are no such widths.
    """

    def __init__(
        self,
        widths: str | Sequence[int | str] = "vgg16_imagenet",
        num_classes: int = 1000,
        hidden: Sequence[int] = (4096, 4096),
        norm: bool = False,
        hidden_norm: bool = False,
        gamma: float = 1.0,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.trunk, self.num_features = _trunk(_published(widths), in_chans, True, norm)
        he_normal(self, gamma)
        self.pooled = 7 if hidden else 1
        layers: list[nn.Module] = []
        before = self.num_features * self.pooled**2
        for width in hidden:
            linear, relu = nn.Linear(before, width), nn.ReLU(inplace=True)
            layers += [linear, nn.BatchNorm1d(width), relu] if hidden_norm else [linear, relu, nn.Dropout()]
            before = width
        self.head = nn.Sequential(*layers, nn.Linear(before, num_classes))
        _start_linear(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, K]."""
        return self.head(F.adaptive_avg_pool2d(self.trunk(images), self.pooled).flatten(1))


def _published(widths: str | Widths) -> Widths:
    if isinstance(widths, str):
        if widths not in WIDTHS:
            raise Mistake(f"no VGG has the widths '{widths}': name one of {', '.join(WIDTHS)}, or list its widths")
        return WIDTHS[widths]
    wrong = [width for width in widths if width != "M" and not (isinstance(width, int) and width > 0)]
    if wrong or not set(widths) - {"M"}:
        raise Mistake(f"widths of a VGG are numbers above 0 and M between them, not {list(widths)}")
    return widths


def _trunk(widths: Widths, in_chans: int, bias: bool, norm: bool) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    before = in_chans
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers.append(nn.Conv2d(before, width, 3, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
        before = width
    return nn.Sequential(*layers), before


def _start_linear(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
