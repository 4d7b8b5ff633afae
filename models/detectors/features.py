"""Feature maps of a timm backbone, with the padding of the batch at their resolutions."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format, freeze_batch_norm_2d
from timm.models import FeatureListNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.backbones.size_divisor import size_divisor
from models.mistakes import Mistake
from models.pixels import state_pretrained
from models.pruning.extractor import shrink_extractor


class Features(nn.Module):
    """A timm backbone that hands out some of its feature maps, as detection transformers use it.

    Args:
        backbone: timm's name of the network, ours included.
        options: Further arguments of `timm.create_model`, and perhaps `plan`: that of a pruned classifier of this name,
            as `python -m exp prune` writes it, by which the backbone and its maps are narrower.
        pretrained: Whether to start from timm's weights.
        levels: Indices of timm's feature maps, finest first; None for the last three.
        frozen_norm: Whether batch norms normalise with constants: `y = x w / sqrt(var + eps) + b - mean w / sqrt(..)`,
            all four of them buffers.
        frozen_stages: How many of timm's feature maps, counted from the images, are made by layers that do not train.
            A ResNet's stem is the first, its `layer1` the second; an EfficientNet's maps end at strides 2 and 4.

    Attributes:
        body: timm's feature extractor.
        channels: Channels of each level.
        strides: Pixels of the image per cell, of each level.
        size_divisor: Number of whose multiples the sides of a batch have to be for levels of exactly these strides.

    Raises:
        Mistake: Levels that the network does not have or that are out of order, more frozen stages than it has maps, or
            a plan of another network.
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
        self.backbone = backbone
        options = dict(options or {})
        plan = options.pop("plan", None)
        try:
            body = _create(backbone, options, pretrained=pretrained, out_indices=indices)
        except (IndexError, AssertionError) as error:
            if isinstance(error, AssertionError) and "feature index" not in str(error):
                raise
            raise Mistake(f"{backbone} does not have the feature maps {indices}") from error
        state_pretrained(body, pretrained, options)
        available = len(body.feature_info)
        order = [index % available for index in indices]
        if not order or order != sorted(set(order)):
            raise Mistake(f"levels are increasing indices of the {available} feature maps of {backbone}: not {levels}")
        if plan is not None:
            shrink_extractor(body, plan, afresh=not pretrained)
        if frozen_norm:
            if not pretrained:
                _unit_scales(body)
            body = freeze_batch_norm_2d(body)
        _freeze(body, backbone, options, frozen_stages)
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

        Raises:
            Mistake: A network that takes images of one size alone, which these are not.
        """
        mask = padding[:, None].float()
        try:
            found = self.body(images)
        except (AssertionError, RuntimeError) as error:
            config: Any = self.body.pretrained_cfg
            if not config.get("fixed_input_size") or isinstance(error, torch.OutOfMemoryError):
                raise
            height, width = images.shape[-2:]
            raise Mistake(
                f"{self.backbone} takes images of the size that it is built for alone, not of {height}x{width} pixels: "
                "choose a backbone that takes images of any size, such as a convolutional one or Swin"
            ) from error
        maps = [x.permute(0, 3, 1, 2) if self.channels_last else x for x in found]
        return [(x, F.interpolate(mask, size=x.shape[-2:]).bool().squeeze(1)) for x in maps]


def _unit_scales(body: nn.Module) -> None:
    # timm starts the last norm of a residual branch at zero, and a frozen one would switch the branch off for good.
    for module in body.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.ones_(module.weight)


def _create(backbone: str, options: dict[str, Any], **more: Any) -> Any:
    """timm's feature extractor, for images of any size where the network knows how."""
    config = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        for free in ({"strict_img_size": False}, {"dynamic_img_size": True}):
            # Networks that have no such option say so by a TypeError, as they do of one that somebody mistyped.
            with suppress(TypeError):
                return timm.create_model(backbone, features_only=True, **free | options, **more)
    return timm.create_model(backbone, features_only=True, **options, **more)


def _freeze(body: Any, backbone: str, options: dict[str, Any], stages: int) -> None:
    if stages == 0:
        return
    info = body.feature_info
    if not 0 < stages <= len(info):
        raise Mistake(f"frozen_stages of {backbone} can be 0 to {len(info)}, not {stages}")
    if isinstance(body, FeatureListNet):
        last = info[stages - 1]["module"].replace(".", "_")
        for name, module in body.items():
            module.requires_grad_(False)
            if name == last:
                return
    frozen = _behind(backbone, options, stages)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _behind(backbone: str, options: dict[str, Any], stages: int) -> set[str]:
    """Names of the parameters that the first maps of a network are computed with, found without data."""
    with torch.device("meta"):
        twin = _create(backbone, options, out_indices=range(stages)).eval()
        height, width = _pair(options.get("img_size", twin.pretrained_cfg["input_size"][1:]))
        maps = twin(torch.empty(1, twin.pretrained_cfg["input_size"][0], height, width))
        torch.stack([x.sum() for x in maps]).sum().backward()
    return {name for name, parameter in twin.named_parameters() if parameter.grad is not None}


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
