"""HRNet for segmentation, with one prediction at its end.

Reference: "Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919, HRNetV2.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from models.layers.hrnet import HRNet, Stage, concatenate, init_weights
from models.layers.hrnet_exits import ExitHead
from models.layers.resize import resize


class HRNetSegmenter(nn.Module):
    """HRNet, its branches side by side at a quarter of the resolution, and two 1x1 convolutions.

    Args:
        num_classes: How many classes there are, K.
        stages: A name in `models.layers.hrnet.STAGES`, or its four rows.
        in_chans: Channels of the images.
        bn_momentum: Share of a batch in the running statistics.
        init_std: Standard deviation of fresh convolution weights; None for He initialisation, to train from scratch.

    Raises:
        Mistake: Stages that do not make a network.
    """

    # The coarsest stride.
    size_divisor = 32
    # An ImageNet trunk is a start (see `models.official.absent_parts`).
    fresh_parts: ClassVar[dict[str, str]] = {"head": r"head\..*"}

    def __init__(
        self,
        num_classes: int = 19,
        stages: str | Sequence[Stage] = "w18_small_v2",
        in_chans: int = 3,
        bn_momentum: float = 0.01,
        init_std: float | None = 0.001,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.backbone = HRNet(stages, in_chans, "bilinear", bn_momentum)
        width = sum(self.backbone.stage_chans[-1])
        self.head = ExitHead(width, width, num_classes, 0, bn_momentum)
        init_weights(self, init_std)

    def get_classifier(self) -> nn.Module:
        """The layer that depends on the classes."""
        return self.head.classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W], sides multiples of 32, to logits [B, K, H, W]."""
        return resize(self.head(concatenate(self.backbone(images))), images.shape[-2:])
