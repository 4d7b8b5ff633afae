"""UperNet: a pyramid over any backbone's feature maps, pooled context at its top, and one prediction of all levels.

Reference: "Unified Perceptual Parsing for Scene Understanding", arXiv 1807.10221, section 3; with ConvNeXt,
"A ConvNet for the 2020s", arXiv 2201.03545, section 4 and table 4.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from models.backbones.size_divisor import size_divisor
from models.layers.resize import resize
from models.mistakes import Mistake
from models.pixels import state_pretrained

NUM_LEVELS = 4
# The auxiliary head reads the map of stride 16.
AUX_LEVEL = 2


class UperHead(nn.Module):
    """Logits at the resolution of the finest feature map.

    The coarsest map x_4 and its averages over grids of several sizes make the top of the pyramid,
    p_4 = conv([x_4, up(conv(pool_s(x_4))) for each s]), and p_i = conv(x_i) + up(p_{i+1}) the levels below. The levels
    but for the top are convolved once more, and all of them, at the size of the finest, give the logits.

    Args:
        in_chans: Channels of the feature maps, finest first.
        hidden_dim: Channels of every convolution.
        num_classes: How many classes there are, K.
        pool_sizes: Sides of the grids that the coarsest map is averaged over.
        dropout: Probability that a channel is dropped before the classifier.
    """

    def __init__(
        self, in_chans: Sequence[int], hidden_dim: int, num_classes: int, pool_sizes: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        *fine, coarsest = in_chans
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), Conv2dNormActivation(coarsest, hidden_dim, 1))
            for size in pool_sizes
        )
        self.context = Conv2dNormActivation(coarsest + len(pool_sizes) * hidden_dim, hidden_dim, 3)
        self.laterals = nn.ModuleList(Conv2dNormActivation(chans, hidden_dim, 1) for chans in fine)
        self.smooths = nn.ModuleList(Conv2dNormActivation(hidden_dim, hidden_dim, 3) for _ in fine)
        self.fusion = Conv2dNormActivation(len(in_chans) * hidden_dim, hidden_dim, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(hidden_dim, num_classes, 1)
        _init_weights(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps [B, in_chans[i], h_i, w_i], finest first, to logits [B, K, h_0, w_0]."""
        *fine, coarsest = features
        averages = [resize(pool(coarsest), coarsest.shape[-2:]) for pool in self.pools]
        top = level = self.context(torch.cat([coarsest, *averages], 1))
        levels: list[Tensor] = []
        for lateral, x in zip(reversed(self.laterals), reversed(fine), strict=True):
            x = lateral(x)
            level = x + resize(level, x.shape[-2:])
            levels.insert(0, level)
        levels = [smooth(level) for smooth, level in zip(self.smooths, levels, strict=True)] + [top]
        size = features[0].shape[-2:]
        fused = self.fusion(torch.cat([resize(level, size) for level in levels], 1))
        return self.classifier(self.dropout(fused))


class FCNHead(nn.Module):
    """Logits of one feature map: a 3x3 convolution and the classifier.

    Reference: "Fully Convolutional Networks for Semantic Segmentation", arXiv 1411.4038.

    Args:
        in_chans: Channels of the feature map.
        hidden_dim: Channels of the convolution.
        num_classes: How many classes there are, K.
        dropout: Probability that a channel is dropped before the classifier.
    """

    def __init__(self, in_chans: int, hidden_dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = Conv2dNormActivation(in_chans, hidden_dim, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(hidden_dim, num_classes, 1)
        _init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, h, w] to logits [B, K, h, w]."""
        return self.classifier(self.dropout(self.conv(x)))


class UperNet(nn.Module):
    """Any timm backbone under UperNet's head, with an auxiliary head on its third map in training.

    In training there are two exits, the auxiliary one first: weigh their losses 0.4 and 1, as published. In evaluation
    the auxiliary head does not run.

    Args:
        num_classes: How many classes there are, K.
        backbone: timm's name of a network with `features_only`, ours included, of four feature maps or more; the four
            coarsest are used. `convnext_*_dense` have the published norm on each of them.
        hidden_dim: Channels of the head.
        aux_dim: Channels of the auxiliary head.
        pool_sizes: Sides of the grids that the coarsest map is averaged over.
        dropout: Probability that a channel is dropped before the classifiers.
        drop_path_rate: Stochastic depth rate of the backbone's last block; 0 for none.
        pretrained: Whether the backbone starts from timm's weights.
        options: Further arguments of `timm.create_model`.

    Raises:
        Mistake: Numbers below 1, a dropout outside of [0, 1), or a backbone that timm does not know or that has too
            few feature maps.
    """

    def __init__(
        self,
        num_classes: int = 150,
        backbone: str = "convnext_tiny_dense",
        hidden_dim: int = 512,
        aux_dim: int = 256,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if min(num_classes, hidden_dim, aux_dim, *pool_sizes) < 1 or not pool_sizes:
            raise Mistake(
                f"classes, channels and pool sizes, of which there is at least one, are 1 or more: not {num_classes=}, "
                f"{hidden_dim=}, {aux_dim=}, {pool_sizes=}"
            )
        if not 0 <= dropout < 1:
            raise Mistake(f"dropout is a probability below 1, not {dropout}")
        self.num_classes = num_classes
        self.backbone = _features(backbone, drop_path_rate, pretrained, options or {})
        # Swin's maps are [B, h, w, channels].
        self.channels_last = getattr(self.backbone, "output_fmt", Format.NCHW) == Format.NHWC
        self.size_divisor = size_divisor(self.backbone)
        chans = self.backbone.feature_info.channels()
        self.head = UperHead(chans, hidden_dim, num_classes, pool_sizes, dropout)
        self.auxiliary = FCNHead(chans[AUX_LEVEL], aux_dim, num_classes, dropout)

    def get_classifier(self) -> nn.Module:
        """The layers whose size is the number of classes, which weights of other classes leave as they are."""
        return nn.ModuleList([self.auxiliary.classifier, self.head.classifier])

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to four maps [B, C_i, h_i, w_i], finest first."""
        maps = self.backbone(images)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else list(maps)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images to logits of their size.

        Args:
            images: [B, 3, H, W], normalised. Sides of at least 32 that need not be multiples of it for ConvNeXt; other
                backbones may ask for more.

        Returns:
            [B, K, H, W]; in training, the auxiliary head's and the head's.
        """
        size, maps = images.shape[-2:], self.features(images)
        logits = resize(self.head(maps), size)
        return [resize(self.auxiliary(maps[AUX_LEVEL]), size), logits] if self.training else logits


def _features(backbone: str, drop_path_rate: float, pretrained: bool, options: dict[str, Any]) -> Any:
    if not timm.is_model(backbone):
        raise Mistake(f"no backbone is called {backbone!r}: timm.list_models() lists all names")
    # Not every network takes the argument.
    options = ({"drop_path_rate": drop_path_rate} if drop_path_rate else {}) | options
    levels = tuple(range(-NUM_LEVELS, 0))
    try:
        body = timm.create_model(backbone, pretrained=pretrained, features_only=True, out_indices=levels, **options)
    except IndexError as error:
        raise Mistake(f"{backbone} has fewer than the {NUM_LEVELS} feature maps that UperNet needs") from error
    except RuntimeError as error:
        # No feature maps to be had, or no weights of that tag.
        raise Mistake(f"timm cannot make a backbone of {backbone!r}: {error}") from error
    state_pretrained(body, pretrained, options)
    return body


def _init_weights(head: nn.Module) -> None:
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d) and name != "classifier":
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    classifier = head.get_submodule("classifier")
    assert isinstance(classifier, nn.Conv2d)
    assert classifier.bias is not None
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
