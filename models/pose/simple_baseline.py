"""Heat maps from any backbone: its coarsest map, enlarged by transposed convolutions.

Reference: "Simple Baselines for Human Pose Estimation and Tracking", arXiv 1804.06208, section 2.
"""

from typing import Any

from timm.layers import Format
from torch import Tensor, nn

from models.mistakes import Mistake
from models.pixels import state_pretrained
from models.timm_options import create

# Pixels of the image a cell of the heat maps.
STRIDE = 4


class SimpleBaseline(nn.Module):
    """A timm backbone, transposed convolutions that double its coarsest map up to a stride of 4, a 1x1 convolution.

    Args:
        num_joints: How many joints a person has, J.
        backbone: timm's name of a network with `features_only`, ours included, whose coarsest map has a stride of 4
            times a power of two.
        pretrained: Whether the backbone starts from timm's weights.
        hidden_dim: Channels of the transposed convolutions; 256 in the paper.
        options: Further arguments of `timm.create_model`.

    Raises:
        Mistake: No joint, no channel, or a backbone of another stride.
    """

    def __init__(
        self,
        num_joints: int = 16,
        backbone: str = "resnet50",
        pretrained: bool = False,
        hidden_dim: int = 256,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_joints < 1 or hidden_dim < 1:
            raise Mistake(f"num_joints={num_joints} and hidden_dim={hidden_dim} must be positive")
        body: Any = create(backbone, options or {}, features_only=True, out_indices=(-1,), pretrained=pretrained)
        state_pretrained(body, pretrained, options)
        self.num_joints, self.backbone = num_joints, body
        self.channels_last = getattr(body, "output_fmt", Format.NCHW) == Format.NHWC
        (chans,), (stride,) = body.feature_info.channels(), body.feature_info.reduction()
        doublings = (stride // STRIDE).bit_length() - 1
        if stride != STRIDE << max(doublings, 0):
            raise Mistake(
                f"the coarsest map of {backbone} has a stride of {stride}: it must be {STRIDE} times a power of two"
            )
        layers: list[nn.Module] = []
        for _ in range(doublings):
            layers += [
                nn.ConvTranspose2d(chans, hidden_dim, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(hidden_dim),
                nn.ReLU(inplace=True),
            ]
            chans = hidden_dim
        self.enlarge = nn.Sequential(*layers)
        self.head = nn.Conv2d(chans, num_joints, 1)
        for module in (*self.enlarge, self.head):
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def get_classifier(self) -> nn.Module:
        """The layer that depends on the joints."""
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], sides multiples of the backbone's stride, to heat maps [B, J, H / 4, W / 4]."""
        (x,) = self.backbone(images)
        return self.head(self.enlarge(x.permute(0, 3, 1, 2) if self.channels_last else x))
