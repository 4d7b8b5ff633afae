"""HRNet for pose estimation: a heat map of each joint.

Reference: "Deep High-Resolution Representation Learning for Human Pose Estimation", arXiv 1902.09212.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from models.layers.hrnet import COARSE_FUSION, HRNet, Stage, init_weights


class HRNetPose(nn.Module):
    """HRNet whose finest branch is read by one 1x1 convolution.

    Args:
        num_joints: How many joints a person has, J.
        stages: A name in `models.layers.hrnet.STAGES`, or its four rows.
        in_chans: Channels of the images.
        bn_momentum: Share of a batch in the running statistics.
        init_std: Standard deviation of fresh convolution weights; None for He initialisation, to train from scratch.

    Raises:
        Mistake: Stages that do not make a network.
    """

    # An ImageNet trunk is a start (see `models.official.absent_parts`).
    fresh_parts: ClassVar[dict[str, str]] = {"head": r"head\..*"}
    spare_parts: ClassVar[dict[str, str]] = COARSE_FUSION

    def __init__(
        self,
        num_joints: int = 16,
        stages: str | Sequence[Stage] = "w32",
        in_chans: int = 3,
        bn_momentum: float = 0.1,
        init_std: float | None = 0.001,
    ) -> None:
        super().__init__()
        self.num_joints, self.in_chans = num_joints, in_chans
        self.backbone = HRNet(stages, in_chans, "nearest", bn_momentum, out_branches=1)
        self.head = nn.Conv2d(self.backbone.stage_chans[-1][0], num_joints, 1)
        init_weights(self, init_std)

    def get_classifier(self) -> nn.Module:
        """The layer that depends on the joints."""
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W], sides multiples of 32, to heat maps [B, J, H / 4, W / 4]."""
        return self.head(self.backbone(images)[0])
