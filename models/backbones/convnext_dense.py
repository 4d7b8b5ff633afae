"""ConvNeXt for detection and segmentation: a LayerNorm on every feature map that is handed out.

`timm.create_model("convnext_tiny_dense", features_only=True)` is the dense network. Without `features_only` every name
here is timm's classifier of that size, as of any other network that timm knows.

Reference: "A ConvNet for the 2020s", arXiv 2201.03545, section 4.
"""

from collections.abc import Sequence
from typing import Any

import timm
from timm.layers import LayerNorm2d
from timm.models import FeatureInfo, register_model
from timm.models.convnext import ConvNeXt, ConvNeXtStage
from torch import Tensor, nn

from models.backbones.registration import default_cfgs_of
from models.mistakes import Mistake


class ConvNeXtDense(nn.Module):
    """Stem and stages of a ConvNeXt, and `norm{i}` on the returned copy of stage i.

    The next stage receives the map before that norm. Stages after the last requested one are left out.

    Args:
        trunk: timm's ConvNeXt, whose stem and stages are taken over.
        out_indices: Stages whose maps are returned, in increasing order; negative ones count from the end.

    Attributes:
        spare_parts: What official weights have for maps that are not handed out (see `models.official.spare_parts`).

    Raises:
        Mistake: No stage requested, one that does not exist, or stages out of order.
    """

    def __init__(self, trunk: ConvNeXt, out_indices: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        count = len(trunk.stages)
        indices = [i + count if i < 0 else i for i in out_indices]
        if not indices or indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < count:
            raise Mistake(f"out_indices must be increasing stages between 0 and {count - 1}, not {out_indices}")
        self.out_indices = tuple(indices)
        self.feature_info = FeatureInfo(trunk.feature_info, self.out_indices)
        self.stem = trunk.stem
        self.stages = trunk.stages[: indices[-1] + 1]
        for i in self.out_indices:
            self.add_module(f"norm{i}", LayerNorm2d(self.feature_info.info[i]["num_chs"], eps=1e-6))
        self.spare_parts = {
            f"stage {i}": rf"norm{i}\..*" + (rf"|stages\.{i}\..*" if i > indices[-1] else "")
            for i in range(count)
            if i not in indices
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm orders the parameters from stem to output norms."""
        blocks: Any = r"^stages\.(\d+)"
        if not coarse:
            blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for stage in self.stages.children():
            assert isinstance(stage, ConvNeXtStage)
            stage.grad_checkpointing = enable

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to maps [B, C_i, H / r_i, W / r_i], r_i = 4, 8, 16, 32, one a requested stage."""
        features = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                features.append(self.get_submodule(f"norm{i}")(x))
        return features


default_cfgs = default_cfgs_of(
    {f"convnext_{size}_dense": f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")}
)


def _create(convnext: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    if kwargs.get("features_only"):
        # The downstream recipes start LayerScale at one where no pre-trained value replaces it.
        kwargs = {"ls_init_value": 1.0, "num_classes": 0, "feature_cls": ConvNeXtDense} | kwargs
    return timm.create_model(convnext, pretrained=pretrained, **kwargs)


@register_model
def convnext_tiny_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T, channels 96, 192, 384, 768; `pretrained` is timm's classifier."""
    return _create("convnext_tiny", pretrained, kwargs)


@register_model
def convnext_small_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-S, channels 96, 192, 384, 768; `pretrained` is timm's classifier."""
    return _create("convnext_small", pretrained, kwargs)


@register_model
def convnext_base_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-B, channels 128, 256, 512, 1024; `pretrained` is timm's classifier."""
    return _create("convnext_base", pretrained, kwargs)


@register_model
def convnext_large_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-L, channels 192, 384, 768, 1536; `pretrained` is timm's classifier."""
    return _create("convnext_large", pretrained, kwargs)


@register_model
def convnext_xlarge_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-XL, channels 256, 512, 1024, 2048; `pretrained` is timm's classifier."""
    return _create("convnext_xlarge", pretrained, kwargs)
