"""The modernisation ladder: from ResNet to ConvNeXt, one design choice at a time.

Every rung is a timm model: `ladder_r50_0_resnet` ... `ladder_r50_12_convnext` (the cost of Swin-T) and
`ladder_r200_...` (the cost of Swin-B). All rungs understand the same options, so that an experiment can walk the
whole ladder by changing one name. The last rung is timm's ConvNeXt itself.

Reference: "A ConvNet for the 2020s", arXiv 2201.03545, section 2 and tables 10 and 11.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import timm
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, LayerScale2d, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, named_apply, register_model
from torch import Tensor, nn

from models.backbones.registration import default_cfgs_of
from models.mistakes import Mistake


@dataclass(frozen=True)
class Rung:
    """The design choices that tell one rung from the next.

    Args:
        depths: Blocks of each of the four stages.
        dims: Width of each stage. A bottleneck block is this wide inside and four times as wide outside, the other
            blocks the other way round.
        patchify: Stem of one non-overlapping convolution instead of a strided 7x7 convolution and max pooling.
        block: Order of the three convolutions. `bottleneck`: 1x1 down, k x k, 1x1 up; `inverted`: 1x1 up, k x k,
            1x1 down; `depthwise_first`: k x k, 1x1 up, 1x1 down.
        depthwise: Whether the k x k convolution is depthwise.
        kernel_size: k.
        act: Activation.
        fewer_acts: One activation, between the two 1x1 convolutions, instead of one after each of the first two
            convolutions and one after the addition.
        fewer_norms: One norm, after the first convolution, instead of one after each convolution.
        norm: `batch` norm, or `layer` norm over the channels of each pixel.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    patchify: bool = False
    block: Literal["bottleneck", "inverted", "depthwise_first"] = "bottleneck"
    depthwise: bool = False
    kernel_size: int = 3
    act: Literal["relu", "gelu"] = "relu"
    fewer_acts: bool = False
    fewer_norms: bool = False
    norm: Literal["batch", "layer"] = "batch"

    def new_norm(self, dim: int) -> nn.Module:
        """A norm over maps of `dim` channels."""
        return nn.BatchNorm2d(dim) if self.norm == "batch" else LayerNorm2d(dim, eps=1e-6)

    def new_act(self) -> nn.Module:
        """An activation."""
        return nn.ReLU(inplace=True) if self.act == "relu" else nn.GELU()

    def out_dim(self, dim: int) -> int:
        """Channels that leave a stage of width `dim`."""
        return 4 * dim if self.block == "bottleneck" else dim


class LadderBlock(nn.Module):
    """Residual block of three convolutions, `shortcut(x) + branch(x)`, with [B, C, H, W] in and out.

    Args:
        rung: Design choices.
        in_chans: Channels that come in.
        dim: Width of the stage (see `Rung.dims`).
        stride: Stride of the k x k convolution and of the shortcut.
        drop_path: Probability that the branch of a sample is dropped.
        ls_init_value: Initial LayerScale of the branch; None for no LayerScale.
    """

    def __init__(
        self, rung: Rung, in_chans: int, dim: int, stride: int, drop_path: float, ls_init_value: float | None
    ) -> None:
        super().__init__()
        inner, out_dim = (dim, 4 * dim) if rung.block == "bottleneck" else (4 * dim, dim)
        # One line a convolution: in, out, kernel, stride, groups.
        if rung.block == "depthwise_first":
            plan = [
                (in_chans, in_chans, rung.kernel_size, stride, in_chans),
                (in_chans, inner, 1, 1, 1),
                (inner, out_dim, 1, 1, 1),
            ]
        else:
            plan = [
                (in_chans, inner, 1, 1, 1),
                (inner, inner, rung.kernel_size, stride, inner if rung.depthwise else 1),
                (inner, out_dim, 1, 1, 1),
            ]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (conv_in, conv_out, kernel, conv_stride, groups) in enumerate(plan, start=1):
            layers[f"conv{i}"] = nn.Conv2d(
                conv_in, conv_out, kernel, conv_stride, kernel // 2, groups=groups, bias=False
            )
            if i == 1 or not rung.fewer_norms:
                layers[f"norm{i}"] = rung.new_norm(conv_out)
            if i == 2 or (i == 1 and not rung.fewer_acts):
                layers[f"act{i}"] = rung.new_act()
        if ls_init_value is not None:
            layers["scale"] = LayerScale2d(out_dim, init_values=ls_init_value)
        self.branch = nn.Sequential(layers)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_chans != out_dim:
            self.shortcut = nn.Sequential(nn.Conv2d(in_chans, out_dim, 1, stride, bias=False), rung.new_norm(out_dim))
        self.act = nn.Identity() if rung.fewer_acts else rung.new_act()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_dim, H / stride, W / stride]."""
        return self.act(self.shortcut(x) + self.drop_path(self.branch(x)))


class LadderStage(nn.Module):
    """Blocks of one resolution; the first one strides."""

    def __init__(
        self, rung: Rung, in_chans: int, dim: int, stride: int, drop_paths: Sequence[float], ls_init_value: float | None
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.Sequential(
            *(
                LadderBlock(
                    rung,
                    in_chans if i == 0 else rung.out_dim(dim),
                    dim,
                    stride if i == 0 else 1,
                    drop_path,
                    ls_init_value,
                )
                for i, drop_path in enumerate(drop_paths)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_dim, H / stride, W / stride]."""
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Ladder(nn.Module):
    """Any rung below the last: stem, four stages, pooling, linear classifier.

    Args:
        cfg: Design choices of the rung.
        depths, dims: In place of the rung's own, for reduced networks; four numbers each (see `Rung`).
        patch_size: Stride of the stem. A patchify stem takes any; a ResNet stem 4 (7x7 stride 2 and max pooling),
            2 (7x7 stride 2) or 1 (3x3 stride 1). As in timm's ConvNeXt, the first stage strides by two when this is 2,
            so that features then start at a reduction of 4 too.
        in_chans: Channels of the images.
        num_classes: Classes; 0 for pooled features.
        global_pool: timm's name of a pooling; empty for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.
        ls_init_value: Initial LayerScale of every block; None for no LayerScale.

    Raises:
        Mistake: A number of stages other than four, or a stride that a ResNet stem does not have.
    """

    def __init__(
        self,
        cfg: Rung,
        depths: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ls_init_value: float | None = None,
    ) -> None:
        super().__init__()
        depths, dims = tuple(depths or cfg.depths), tuple(dims or cfg.dims)
        if len(depths) != 4 or len(dims) != 4 or min(depths) < 1:
            raise Mistake(f"a ladder network has four stages of at least one block, not {depths=} and {dims=}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.stem = _stem(cfg, in_chans, dims[0], patch_size)

        stages, self.feature_info = [], []
        chans, reduction = dims[0], patch_size
        # Numbers, not tensors: networks are also built on the meta device, where tensors have no values.
        drop_paths = np.split(np.linspace(0, drop_path_rate, sum(depths)), np.cumsum(depths)[:-1])
        for i, dim in enumerate(dims):
            stride = 2 if i > 0 or patch_size == 2 else 1
            stages.append(LadderStage(cfg, chans, dim, stride, drop_paths[i].tolist(), ls_init_value))
            chans, reduction = cfg.out_dim(dim), reduction * stride
            self.feature_info.append({"num_chs": chans, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = chans
        self.head = ClassifierHead(chans, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        named_apply(_init_weights, self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm orders the parameters from stem to head."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for stage in self.stages.children():
            assert isinstance(stage, LadderStage)
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier of `num_classes` classes in place of the old one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to the last feature map [B, num_features, H', W']."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits [B, num_classes], or to pooled features [B, num_features]."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def _stem(rung: Rung, in_chans: int, dim: int, stride: int) -> nn.Sequential:
    if rung.patchify:
        return nn.Sequential(nn.Conv2d(in_chans, dim, stride, stride, bias=False), rung.new_norm(dim))
    if stride not in (1, 2, 4):
        raise Mistake(f"a ResNet stem has stride 1, 2 or 4, not patch_size={stride}")
    kernel = 3 if stride == 1 else 7
    layers = [
        nn.Conv2d(in_chans, dim, kernel, min(stride, 2), kernel // 2, bias=False),
        rung.new_norm(dim),
        rung.new_act(),
    ]
    if stride == 4:
        layers.append(nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*layers)


def _init_weights(module: nn.Module, name: str = "") -> None:
    # The recipe that all rungs share prescribes this for every layer (table 5 of the paper).
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _ladder(
    resnet_depths: tuple[int, ...], depths: tuple[int, ...], dims: tuple[int, ...], wide_dims: tuple[int, ...]
) -> dict[str, Rung]:
    rungs = {"0_resnet": Rung(depths=resnet_depths, dims=(64, 128, 256, 512))}

    def step(name: str, parent: str, **changes: Any) -> None:
        rungs[name] = replace(rungs[parent], **changes)

    step("1_stage_ratio", "0_resnet", depths=depths, dims=dims)
    step("2_patchify", "1_stage_ratio", patchify=True)
    step("3_depthwise", "2_patchify", depthwise=True)
    step("4_width", "3_depthwise", dims=wide_dims)
    step("5_inverted", "4_width", block="inverted")
    step("6_depthwise_up", "5_inverted", block="depthwise_first")
    step("7a_kernel5", "6_depthwise_up", kernel_size=5)
    step("7b_kernel7", "6_depthwise_up", kernel_size=7)
    step("7c_kernel9", "6_depthwise_up", kernel_size=9)
    step("7d_kernel11", "6_depthwise_up", kernel_size=11)
    step("8_gelu", "7b_kernel7", act="gelu")
    step("9_fewer_activations", "8_gelu", fewer_acts=True)
    step("10_fewer_norms", "9_fewer_activations", fewer_norms=True)
    step("11_layernorm", "10_fewer_norms", norm="layer")
    return rungs


LADDERS = {
    "r50": _ladder((3, 4, 6, 3), (3, 3, 9, 3), (64, 128, 256, 512), (96, 192, 384, 768)),
    "r200": _ladder((3, 24, 36, 3), (3, 3, 27, 3), (84, 168, 336, 672), (128, 256, 512, 1024)),
}
LAST_RUNGS = {"r50": "convnext_tiny", "r200": "convnext_base"}

__all__ = ["LADDERS", "LAST_RUNGS", "Ladder", "LadderBlock", "LadderStage", "Rung"]
_ENTRY = {"pool_size": (7, 7), "first_conv": "stem.0", "classifier": "head.fc"}
default_cfgs = generate_default_cfgs(
    {f"ladder_{regime}_{name}": _ENTRY for regime, rungs in LADDERS.items() for name in rungs}
) | default_cfgs_of({f"ladder_{regime}_12_convnext": convnext for regime, convnext in LAST_RUNGS.items()})


def _register(name: str, create: Any) -> None:
    # timm knows a model by the name of a function in a module, so each rung gets one.
    create.__name__ = create.__qualname__ = name
    globals()[name] = register_model(create)


def _rung_entry(name: str, rung: Rung) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        feature_cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
        return build_model_with_cfg(Ladder, name, pretrained, model_cfg=rung, feature_cfg=feature_cfg, **kwargs)

    _register(name, create)


def _last_entry(name: str, convnext: str) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return timm.create_model(convnext, pretrained=pretrained, **kwargs)

    _register(name, create)


for _regime, _rungs in LADDERS.items():
    for _name, _rung in _rungs.items():
        _rung_entry(f"ladder_{_regime}_{_name}", _rung)
    _last_entry(f"ladder_{_regime}_12_convnext", LAST_RUNGS[_regime])
