"""Swin for detection: images of any size, and a LayerNorm on every feature map that is handed out.

timm's Swin rolls a map and pads it to whole windows afterwards, and leaves a stage unshifted whose map fits one window
at the classifier's resolution. Detection pads first and shifts always, so that a map that is not a multiple of the
window comes out different. Blocks, weights and names are timm's.

`timm.create_model("swin_tiny_dense", features_only=True)` is the dense network. Without `features_only` every name here
is timm's classifier of that size, as of any other network that timm knows.

Reference: "Swin Transformer", arXiv 2103.14030, section 4.2; "SOLQ", arXiv 2106.02351.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import Format, PatchEmbed
from timm.models import FeatureInfo, register_model
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.backbones.registration import default_cfgs_of
from models.mistakes import Mistake


class SwinDense(nn.Module):
    """Patch embedding and stages of a Swin, and `norm{i}` on the returned copy of stage i.

    The next stage receives the map before that norm. Stages after the last requested one are left out.

    Args:
        trunk: timm's Swin for dynamic image sizes, which always partitions.
        out_indices: Stages whose maps are returned, in increasing order; negative ones count from the end.

    Raises:
        Mistake: No stage requested, one that does not exist, or stages out of order.
    """

    def __init__(self, trunk: SwinTransformer, out_indices: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        count = len(trunk.layers)
        indices = [i + count if i < 0 else i for i in out_indices]
        if not indices or indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < count:
            raise Mistake(f"out_indices must be increasing stages between 0 and {count - 1}, not {out_indices}")
        self.out_indices = tuple(indices)
        self.feature_info = FeatureInfo(trunk.feature_info, self.out_indices)
        assert isinstance(trunk.patch_embed, PatchEmbed)
        self.patch_embed, self.patch_size = trunk.patch_embed, trunk.patch_embed.patch_size
        self.layers = trunk.layers[: indices[-1] + 1]
        self.output_fmt = Format.NCHW
        self.grad_checkpointing = False
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(self.feature_info.info[i]["num_chs"]))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm orders the parameters from patch embedding to output norms."""
        blocks: Any = r"^layers\.(\d+)"
        if not coarse:
            blocks = [(r"^layers\.(\d+)\.downsample", (0,)), (r"^layers\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^patch_embed", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to a map [B, C, ceil(H / r), ceil(W / r)] of each requested stage, r = 4, 8, 16, 32."""
        height, width = self.patch_size
        x = self.patch_embed(F.pad(x, (0, -x.shape[-1] % width, 0, -x.shape[-2] % height)))
        features = []
        for i, stage in enumerate(self.layers.children()):
            x = stage.get_submodule("downsample")(x)
            for block in stage.get_submodule("blocks").children():
                assert isinstance(block, SwinTransformerBlock)
                x = checkpoint(_block, block, x, use_reentrant=False) if self.grad_checkpointing else _block(block, x)
            if i in self.out_indices:
                features.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))
        return features


def _block(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """A block on maps [B, H, W, C]."""
    height, width = x.shape[1:3]
    rows, columns = block.window_size
    windows = F.pad(block.norm1(x), (0, 0, 0, -width % columns, 0, -height % rows))
    # On whole windows timm's attention has nothing left to pad: it rolls, attends within windows, and rolls back.
    x = x + block.drop_path1(block._attn(windows)[:, :height, :width])
    return x + block.drop_path2(block.mlp(block.norm2(x)))


_TRUNKS = {f"swin_{size}_dense": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")}
default_cfgs = default_cfgs_of(_TRUNKS)


def _dense(trunk: SwinTransformer, out_indices: Sequence[int], output_fmt: Format) -> SwinDense:
    # timm tells the format of the trunk; what leaves has channels first.
    return SwinDense(trunk, out_indices)


def _create(name: str, pretrained: bool, drop_path_rate: float, kwargs: dict[str, Any]) -> nn.Module:
    if kwargs.get("features_only"):
        any_size = {"strict_img_size": False, "always_partition": True}
        kwargs = {**any_size, "num_classes": 0, "drop_path_rate": drop_path_rate, "feature_cls": _dense} | kwargs
    return timm.create_model(_TRUNKS[name], pretrained=pretrained, **kwargs)


@register_model
def swin_tiny_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-T, channels 96, 192, 384, 768; `pretrained` is timm's classifier."""
    return _create("swin_tiny_dense", pretrained, 0.2, kwargs)


@register_model
def swin_small_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-S, channels 96, 192, 384, 768; `pretrained` is timm's classifier."""
    return _create("swin_small_dense", pretrained, 0.2, kwargs)


@register_model
def swin_base_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-B, channels 128, 256, 512, 1024; `pretrained` is timm's classifier."""
    return _create("swin_base_dense", pretrained, 0.3, kwargs)


@register_model
def swin_large_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-L, channels 192, 384, 768, 1536; `pretrained` is timm's classifier."""
    return _create("swin_large_dense", pretrained, 0.3, kwargs)
