"""The small convolutional network of the experiments on digits and their canvases: two 3x3 convolutions a stage.

It learns from scratch in minutes on a laptop, which no ResNet does. Reference: none; it is ours.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any, Literal

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from models.mistakes import Mistake


class PlainConv(nn.Module):
    """Stages of half the resolution each: twice (3x3 convolution, GroupNorm of 8 groups, ReLU), the first strided.

    Args:
        widths: Channels of each stage, multiples of 8 for norms of groups.
        strides: Stride of each stage; 2 for all by default.
        depth: Convolutions of a stage.
        norm: `group` norms, which small batches of large images want, or `batch` norms.
        in_chans: Channels of the images.
        num_classes: Classes; 0 for pooled features.
        global_pool: timm's name of a pooling; empty for none.
        drop_rate: Dropout before the classifier.

    Raises:
        Mistake: No stages, another number of strides, or a width that 8 groups do not divide.
    """

    def __init__(
        self,
        widths: Sequence[int] = (24, 48, 64),
        strides: Sequence[int] | None = None,
        depth: int = 2,
        norm: Literal["group", "batch"] = "group",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        strides = [2] * len(widths) if strides is None else strides
        if not widths or min(widths) < 1 or (norm == "group" and any(width % 8 for width in widths)):
            raise Mistake(f"widths of a plain_conv are one or more multiples of 8, not {list(widths)}")
        if len(strides) != len(widths) or depth < 1:
            raise Mistake(
                f"every stage has a width, a stride and a convolution or more, not {list(widths)}, {list(strides)} and "
                f"{depth}"
            )
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False
        stages, self.feature_info = [], []
        reductions = accumulate(strides, mul)
        for i, (width, stride, reduction) in enumerate(zip(widths, strides, reductions, strict=True)):
            layers: list[nn.Module] = []
            for j in range(depth):
                before = width if j else [in_chans, *widths][i]
                layers += [
                    nn.Conv2d(before, width, 3, 1 if j else stride, 1, bias=False),
                    nn.GroupNorm(8, width) if norm == "group" else nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
            stages.append(nn.Sequential(*layers))
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = widths[-1]
        self.head = ClassifierHead(widths[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm orders the parameters from the first convolution to the head, stage by stage."""
        return {"stem": r"^stages\.0\.[01]\.", "blocks": r"^stages\.(\d+)"}

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
        """Images [B, in_chans, H, W] to the last feature map [B, num_features, H', W']."""
        return checkpoint_seq(self.stages, x) if self.grad_checkpointing else self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits [B, num_classes], or to pooled features [B, num_features]."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {
        "plain_conv": {
            "input_size": (3, 64, 64),
            "pool_size": (8, 8),
            "first_conv": "stages.0.0",
            "classifier": "head.fc",
        }
    }
)


@register_model
def plain_conv(pretrained: bool = False, **kwargs: Any) -> PlainConv:
    """Stages of 24, 48 and 64 channels at strides 2, 4 and 8, or of other `widths` and `strides`."""
    stages = len(kwargs.get("widths", (24, 48, 64)))
    feature_cfg = {"out_indices": tuple(range(stages)), "flatten_sequential": True}
    return build_model_with_cfg(PlainConv, "plain_conv", pretrained, feature_cfg=feature_cfg, **kwargs)
