"""Feature maps of a timm backbone, with the padding of the batch at their resolutions."""

from collections.abc import Sequence
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import Format, freeze_batch_norm_2d
from timm.models import FeatureListNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.backbones.size_divisor import size_divisor
from models.mistakes import Mistake
from models.pixels import state_pretrained


class Features(nn.Module):
    """A timm backbone that hands out some of its feature maps, as detection transformers use it.

    Args:
        backbone: timm's name of the network, ours included.
        options: Further arguments of `timm.create_model`.
        pretrained: Whether to start from timm's weights.
        levels: Indices of timm's feature maps, finest first; None for the last three.
        frozen_norm: Whether batch norms normalise with constants: `y = x w / sqrt(var + eps) + b - mean w / sqrt(..)`,
            all four of them buffers.
        frozen_stages: How many of timm's feature maps, counted from the images, are made by layers that do not train.
            A ResNet's stem is the first, its `layer1` the second.

    Attributes:
        body: timm's feature extractor.
        channels: Channels of each level.
        strides: Pixels of the image per cell, of each level.
        size_divisor: Number of whose multiples the sides of a batch have to be for levels of exactly these strides.

    Raises:
        Mistake: Levels that the network does not have or that are out of order, or frozen stages of a network that
            timm does not run as a sequence of stages.
    """

    def __init__(
        self,
        backbone: str,
        options: dict[str, Any] | None = None,
        pretrained: bool = False,
        levels: Sequence[int] | None = None,
        frozen_norm: bool = True,
        frozen_stages: int = 2,
    ) -> None:
        super().__init__()
        indices = (-3, -2, -1) if levels is None else tuple(levels)
        try:
            body: Any = timm.create_model(
                backbone, pretrained=pretrained, features_only=True, out_indices=indices, **(options or {})
            )
        except IndexError as error:
            raise Mistake(f"{backbone} does not have the feature maps {indices}") from error
        state_pretrained(body, pretrained, options)
        available = len(body.feature_info)
        order = [index % available for index in indices]
        if not order or order != sorted(set(order)):
            raise Mistake(f"levels are increasing indices of the {available} feature maps of {backbone}: not {levels}")
        if frozen_norm:
            if not pretrained:
                _unit_scales(body)
            body = freeze_batch_norm_2d(body)
        _freeze(body, backbone, frozen_stages)
        self.body: nn.Module = body
        # Swin's maps are [B, h, w, channels].
        self.channels_last = getattr(body, "output_fmt", Format.NCHW) == Format.NHWC
        self.channels: list[int] = body.feature_info.channels()
        self.strides: list[int] = body.feature_info.reduction()
        self.size_divisor = size_divisor(body)

    def forward(self, images: Tensor, padding: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Feature maps and their padding.

        Args:
            images: [B, 3, H, W], normalised.
            padding: [B, H, W], bool, True on padding.

        Returns:
            Finest first, a map [B, channels, h, w] and its padding [B, h, w] for each level.
        """
        mask = padding[:, None].float()
        maps = [x.permute(0, 3, 1, 2) if self.channels_last else x for x in self.body(images)]
        return [(x, F.interpolate(mask, size=x.shape[-2:]).bool().squeeze(1)) for x in maps]


def _unit_scales(body: nn.Module) -> None:
    # timm starts the last norm of a residual branch at zero, and a frozen one would switch the branch off for good.
    for module in body.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.ones_(module.weight)


def _freeze(body: Any, backbone: str, stages: int) -> None:
    if stages == 0:
        return
    info = body.feature_info
    if not isinstance(body, FeatureListNet) or not 0 < stages <= len(info):
        choices = f"0 to {len(info)}" if isinstance(body, FeatureListNet) else "0"
        raise Mistake(f"frozen_stages of {backbone} can be {choices}, not {stages}")
    last = info[stages - 1]["module"].replace(".", "_")
    for name, module in body.items():
        module.requires_grad_(False)
        if name == last:
            break
