"""CONTAINER: a pyramid of blocks that mix self-attention with a convolution, and the networks with either alone.

Reference: "Container: Context Aggregation Network", NeurIPS 2021, arXiv 2106.01401; the released network is
`container_v1_light`. CONTAINER-PAM and MH-MLP, whose affinities are of one size of images, are in `container_pam`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
import torch.nn.functional as F
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, Mlp, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from models.layers.context_aggregation import ContextAggregation, Mixing, Static
from models.mistakes import Mistake


class PatchEmbed(nn.Module):
    """Convolution of non-overlapping patches, then LayerNorm over the channels.

    Maps whose sides are no multiples of the patch are filled up with zeros at the bottom and on the right.

    Args:
        in_chans: Channels that come in.
        dim: Channels that leave.
        patch_size: Kernel and stride.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, dim, ceil(H / patch_size), ceil(W / patch_size)]."""
        bottom, right = (-side % self.patch_size for side in x.shape[-2:])
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return self.norm(self.proj(x))


class ContainerBlock(nn.Module):
    """`x += DWConv(x)`, the position; `x += Aggregation(BN(x))`; `x += MLP(BN(x))`: [B, C, H, W] in and out.

    Args:
        dim: C.
        mlp_ratio: Width of the MLP by C.
        drop_path: Probability that a branch of a sample is dropped.
        **aggregation: Further arguments of `ContextAggregation`.
    """

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float = 0.0, **aggregation: Any) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.aggregation = ContextAggregation(dim, **aggregation)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), use_conv=True)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps to maps."""
        x = x + self.position(x)
        x = x + self.drop_path(self.aggregation(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ContainerStage(nn.Module):
    """Patch embedding, but for the first stage, whose is the stem, then blocks of one resolution."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[ContainerBlock]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, dim, H / patch_size, W / patch_size]."""
        x = self.downsample(x)
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Container(nn.Module):
    """Stem, stages, BatchNorm, mean pooling, linear classifier.

    Images have any size, unless the static affinity is an MLP's, which is of `img_size` only. Self-attention costs in
    proportion to the square of the positions: where the first stages have it, use small images.

    Args:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        patch_sizes: Stride of the patch embedding of each stage.
        mlp_ratios: Width of the MLPs of each stage, by its channels.
        num_heads: Heads of each aggregation.
        dynamic: For each stage, whether it has self-attention.
        static, mixing, kernel_size: See `ContextAggregation`.
        img_size: Side of the images, or height and width; counts for MLP affinities only.
        in_chans: Channels of the images.
        num_classes: Classes; 0 for pooled features.
        global_pool: timm's name of a pooling; empty for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.

    Raises:
        Mistake: Lists of different lengths, or what `ContextAggregation` refuses.
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 8, 3),
        patch_sizes: Sequence[int] = (4, 2, 2, 2),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        num_heads: int = 16,
        dynamic: Sequence[bool] = (False, False, False, True),
        static: Static = "dw",
        mixing: Mixing | float = "sigmoid",
        kernel_size: int = 5,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        lists = {"dims": dims, "depths": depths, "patch_sizes": patch_sizes, "mlp_ratios": mlp_ratios}
        lists["dynamic"] = dynamic
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1 or not dims or min(depths) < 1:
            told = ", ".join(f"{name} {list(values)}" for name, values in lists.items())
            raise Mistake(f"each stage has an entry in every list, and a block or more, not {told}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]

        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        reductions = list(accumulate(patch_sizes, mul))
        drop_paths = np.split(np.linspace(0, drop_path_rate, sum(depths)), np.cumsum(depths)[:-1])
        self.stem = PatchEmbed(in_chans, dims[0], patch_sizes[0])
        stages = []
        for i, dim in enumerate(dims):
            blocks = [
                ContainerBlock(
                    dim,
                    mlp_ratios[i],
                    drop_path,
                    num_heads=num_heads,
                    static=static,
                    dynamic=dynamic[i],
                    mixing=mixing,
                    kernel_size=kernel_size,
                    map_size=(-(-height // reductions[i]), -(-width // reductions[i])),
                )
                for drop_path in drop_paths[i].tolist()
            ]
            downsample = PatchEmbed(dims[i - 1], dim, patch_sizes[i]) if i else nn.Identity()
            stages.append(ContainerStage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (dim, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = ClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.apply(_init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm orders the parameters from stem to head."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        coarser = [(r"^stages\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": coarser if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for stage in self.stages.children():
            assert isinstance(stage, ContainerStage)
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier of `num_classes` classes in place of the old one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to the last feature map [B, num_features, H / 32, W / 32], normalised."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits [B, num_classes], or to pooled features [B, num_features]."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    # Convolutions start as torch lets them.
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


_NAMES = ("container", "container_light", "container_v1_light", "container_mh_dw")
_EVERYWHERE, _NOWHERE = (True,) * 4, (False,) * 4

default_cfgs = generate_default_cfgs(
    {
        name: {
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "first_conv": "stem.proj",
            "classifier": "head.fc",
        }
        for name in _NAMES
    }
)


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    feature_cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    return build_model_with_cfg(Container, name, pretrained, feature_cfg=feature_cfg, **options)


@register_model
def container(pretrained: bool = False, **options: Any) -> nn.Module:
    """CONTAINER, self-attention and convolutions mixed in every stage: 21.8 M parameters, 8.2 G multiply-adds."""
    return _create("container", pretrained, **{"dynamic": _EVERYWHERE} | options)


@register_model
def container_light(pretrained: bool = False, **options: Any) -> nn.Module:
    """CONTAINER-LIGHT of the paper, mixed in the last stage only: 20.0 M parameters, 3.1 G multiply-adds."""
    return _create("container_light", pretrained, **options)


@register_model
def container_v1_light(pretrained: bool = False, **options: Any) -> nn.Module:
    """CONTAINER-LIGHT as released, with wider MLPs: 20.6 M parameters, 3.8 G multiply-adds."""
    return _create("container_v1_light", pretrained, **{"mlp_ratios": (8, 8, 4, 4)} | options)


@register_model
def container_mh_dw(pretrained: bool = False, **options: Any) -> nn.Module:
    """MH-DW: convolutions with a kernel a head, without self-attention."""
    return _create("container_mh_dw", pretrained, **{"dynamic": _NOWHERE, "static": "mh_dw"} | options)
