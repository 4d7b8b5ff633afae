"""ShuffleNetV2 with dynamic region-aware convolutions, the host of the released DRConv code.

Both 1x1 convolutions of every block's processed branch are DRConvs, and one guide per block tells their regions. Every
size is a timm model: `shufflenet_v2_x0_5_drconv`, `..._x1_0_...`, `..._x1_5_...`, `..._x2_0_...`. With
`num_regions=0` the same network has static convolutions.

Reference: "Dynamic Region-Aware Convolution", arXiv 2003.12243; "ShuffleNet V2", arXiv 1807.11164; sizes of
megvii-research/DRConv.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, ConvNormAct
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from models.layers.dr_conv import DRConv2d
from models.mistakes import Mistake


class GuidedConv(nn.Module):
    """1x1 DRConv, batch norm, ReLU; a static convolution without regions.

    Args:
        in_chans: Channels that come in.
        out_chans: Channels that go out.
        num_regions: Regions of the DRConv; 0 for a static convolution.
        num_experts: Kernels that the DRConv mixes.
    """

    def __init__(self, in_chans: int, out_chans: int, num_regions: int, num_experts: int) -> None:
        super().__init__()
        self.conv: nn.Module
        if num_regions:
            self.conv = DRConv2d(
                in_chans,
                out_chans,
                1,
                bias=False,
                num_regions=num_regions,
                num_experts=num_experts,
                guide="given",
            )
        else:
            self.conv = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_chans)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, scores: Tensor | None) -> Tensor:
        """[B, in_chans, H, W] and scores of the regions [B, num_regions, h, w] to [B, out_chans, H, W]."""
        return self.act(self.bn(self.conv(x) if scores is None else self.conv(x, scores)))


class GuidedShuffleBlock(nn.Module):
    """ShuffleNetV2 block: one branch that passes (or is reduced), one that is processed, side by side.

    With stride 1 the even channels pass and the odd ones are processed, which shuffles the halves of the block
    before; with stride 2 both branches see all channels.

    Args:
        in_chans: Channels that come in.
        out_chans: Channels that go out.
        stride: 1 or 2.
        num_regions: Regions of the DRConvs; 0 for static convolutions.
        num_experts: Kernels that a DRConv mixes.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int, num_regions: int, num_experts: int) -> None:
        super().__init__()
        self.stride = stride
        inner = out_chans // 2
        seen = in_chans if stride == 2 else in_chans // 2
        self.guide = nn.Conv2d(seen, num_regions, 1, bias=False) if num_regions else None
        self.expand = GuidedConv(seen, inner, num_regions, num_experts)
        self.depthwise = ConvNormAct(inner, inner, 3, stride, groups=inner, apply_act=False)
        self.project = GuidedConv(inner, out_chans - seen, num_regions, num_experts)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(
                ConvNormAct(seen, seen, 3, stride, groups=seen, apply_act=False), ConvNormAct(seen, seen, 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_chans, H / stride, W / stride]."""
        passed, processed = (x, x) if self.stride == 2 else (x[:, 0::2], x[:, 1::2])
        scores = None if self.guide is None else self.guide(processed)
        processed = self.project(self.depthwise(self.expand(processed, scores)), scores)
        return torch.cat([self.shortcut(passed), processed], 1)


class ShuffleNetDRConv(nn.Module):
    """Stem, stages of shuffle blocks, last 1x1 convolution, pooling, linear classifier.

    Args:
        channels: Width of the stem, of each stage, and of the last convolution.
        depths: Blocks of each stage; the first one of a stage strides.
        num_regions: Regions of the DRConvs; 0 for static convolutions.
        num_experts: Kernels that a DRConv mixes.
        in_chans: Channels of the images.
        num_classes: Classes; 0 for pooled features.
        global_pool: timm's name of a pooling; empty for none.
        drop_rate: Dropout before the classifier.

    Raises:
        Mistake: Widths that do not fit the stages, or that a block cannot split.
    """

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int] = (4, 8, 4),
        num_regions: int = 8,
        num_experts: int = 8,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        stem, *widths, last = channels
        if len(widths) != len(depths) or min(depths, default=0) < 1:
            raise Mistake(f"{channels=} are those of the stem, of the stages of {depths=} and of the last layer")
        if any(out % 2 or out <= before for before, out in zip([stem, *widths], widths, strict=False)):
            raise Mistake(f"every stage has an even number of channels, more than the one before, not {channels=}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False
        self.stem = ConvNormAct(in_chans, stem, 3, 2, bias=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.feature_info = [{"num_chs": stem, "reduction": 2, "module": "stem"}]
        stages, width = [], stem
        for i, (out, depth) in enumerate(zip(widths, depths, strict=True)):
            regions = (num_regions, num_experts)
            blocks = [GuidedShuffleBlock(width, out, 2, *regions)]
            blocks += [GuidedShuffleBlock(out, out, 1, *regions) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": out, "reduction": 8 * 2**i, "module": f"stages.{i}"})
            width = out
        self.stages = nn.Sequential(*stages)
        self.conv_last = ConvNormAct(width, last, 1, bias=True)
        self.num_features = self.head_hidden_size = last
        self.head = ClassifierHead(last, num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm orders the parameters from stem to head."""
        blocks = [(r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)", None), (r"^conv_last", (99999,))]
        return {"stem": r"^stem", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier of `num_classes` classes in place of the old one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to the last feature map [B, num_features, H / 32, W / 32]."""
        x = self.pool(self.stem(x))
        for stage in self.stages:
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
        return self.conv_last(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits [B, num_classes], or to pooled features [B, num_features]."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


CHANNELS = {
    "x0_5": (24, 48, 96, 192, 1024),
    "x1_0": (24, 116, 232, 464, 1024),
    "x1_5": (24, 176, 352, 704, 1024),
    "x2_0": (24, 244, 488, 976, 2048),
}

__all__ = ["CHANNELS", "GuidedConv", "GuidedShuffleBlock", "ShuffleNetDRConv"]
_ENTRY = {"pool_size": (7, 7), "interpolation": "bilinear", "first_conv": "stem.conv", "classifier": "head.fc"}
default_cfgs = generate_default_cfgs({f"shufflenet_v2_{size}_drconv": _ENTRY for size in CHANNELS})


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    arguments = {"channels": CHANNELS[name.removeprefix("shufflenet_v2_").removesuffix("_drconv")], **kwargs}
    depths = arguments.get("depths", (4, 8, 4))
    feature_cfg = {"out_indices": tuple(range(1 + len(depths))), "flatten_sequential": True}
    return build_model_with_cfg(ShuffleNetDRConv, name, pretrained, feature_cfg=feature_cfg, **arguments)


@register_model
def shufflenet_v2_x0_5_drconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 0.5x: 50.1 M multiply-adds, 2.3 M parameters."""
    return _create("shufflenet_v2_x0_5_drconv", pretrained, kwargs)


@register_model
def shufflenet_v2_x1_0_drconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 1x: 193 M multiply-adds, 7.3 M parameters."""
    return _create("shufflenet_v2_x1_0_drconv", pretrained, kwargs)


@register_model
def shufflenet_v2_x1_5_drconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 1.5x: 405 M multiply-adds, 14.8 M parameters."""
    return _create("shufflenet_v2_x1_5_drconv", pretrained, kwargs)


@register_model
def shufflenet_v2_x2_0_drconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 2x."""
    return _create("shufflenet_v2_x2_0_drconv", pretrained, kwargs)
