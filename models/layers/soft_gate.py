"""A gate that is soft where it is open and exactly zero where it is closed.

Reference: "Learning Dynamic Routing for Semantic Segmentation", arXiv 2003.10401, section 3.2.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

# Less than this, all gates of an image together, is none.
CLOSED = 1e-4


def soft_gate(logits: Tensor) -> Tensor:
    """`max(0, tanh(logits))`: in [0, 1), with no gradient where it is 0.

    Args:
        logits: Any shape.

    Returns:
        Gates of that shape, float32: whether one is closed is not decided in half precision.
    """
    return logits.float().tanh().relu()


class SoftGate(nn.Module):
    """Decides for each image how far several paths are open: `soft_gate(W2 pool(ReLU(BN(W1 x))) + b)`.

    Args:
        chans: Channels of the maps it decides by.
        num_paths: Paths.
        small: Whether it looks at the maps at a quarter of their height and width; they must be 4 pixels or more.
        bias: Initial b. A closed gate has no gradient, so paths start nearly open: tanh(1.5) = 0.905.
    """

    def __init__(self, chans: int, num_paths: int, small: bool = False, bias: float = 1.5) -> None:
        super().__init__()
        self.small = small
        self.reduce = Conv2dNormActivation(chans, chans // 2, 1)
        self.score = nn.Conv2d(chans // 2, num_paths, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert self.score.bias is not None
        nn.init.constant_(self.score.bias, bias)

    def logits(self, x: Tensor) -> Tensor:
        """Maps [B, chans, H, W] to what the gates are computed from [B, num_paths]."""
        if self.small:
            x = F.interpolate(x, scale_factor=0.25, mode="bilinear", align_corners=False)
        return self.score(self.reduce(x).mean((2, 3), keepdim=True)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, chans, H, W] to gates [B, num_paths], float32."""
        return soft_gate(self.logits(x))


def all_closed(gates: Tensor) -> Tensor:
    """Whether no path is open, `sum(gates) < 1e-4` [...], for gates [..., num_paths]."""
    return gates.sum(-1) < CLOSED
