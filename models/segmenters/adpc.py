"""ADP-C: a segmenter that can be stopped at four exits, and that goes on only where it is not sure yet.

Reference: "Anytime Dense Prediction with Confidence Adaptivity", ICLR 2022, arXiv 2104.00749.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.anytime import iterate
from models.anytime.confidence import check_criterion, confidence
from models.layers.hrnet import HRNet, Stage, init_weights, plain_conv
from models.layers.hrnet_exits import NUM_EXITS, ExitHead, HRNetExits, head_dims
from models.layers.masked_conv import MaskedConv2d
from models.layers.resize import resize
from models.mistakes import Mistake


class ADPC(HRNetExits):
    """HRNet with early exits (EE), redesigned heads (RH) and confidence adaptivity (CA); all three are ADP-C.

    Args:
        num_classes: K, at least 2.
        stages: A name in `models.layers.hrnet.STAGES`, or its four rows. The paper's W18 is `w18_small_v2`.
        in_chans: Channels of the images.
        pooled_dim: Hidden channels of the redesigned heads, published 64 for W18 and 128 for W48; None for plain heads.
        threshold: A pixel is computed further where the confidence is at most this: one number, or one for each of the
            first three exits. None to compute all pixels, without masked convolutions.
        criterion: How sure an exit is of a pixel, in `models.anytime.CRITERIA`; thresholds of `entropy` are negative.
        bn_momentum: Share of a batch in the running statistics.
        init_std: Standard deviation of fresh convolution weights; None for He initialisation, to train from scratch.

    Raises:
        Mistake: Options that do not make a network; the message says which do.
    """

    def __init__(
        self,
        num_classes: int = 19,
        stages: str | Sequence[Stage] = "w18_small_v2",
        in_chans: int = 3,
        pooled_dim: int | None = 64,
        threshold: float | Sequence[float] | None = 0.998,
        criterion: str = "max_prob",
        bn_momentum: float = 0.01,
        init_std: float | None = 0.001,
    ) -> None:
        check_criterion(criterion)
        if num_classes < 2:
            raise Mistake(f"num_classes={num_classes} must be at least 2")
        if pooled_dim is not None and pooled_dim < 1:
            raise Mistake(f"pooled_dim={pooled_dim} must be positive, or None for plain heads")
        conv = plain_conv if threshold is None else MaskedConv2d
        trunk = HRNet(stages, in_chans, "bilinear", bn_momentum, conv)
        chans = [sum(widths) for widths in trunk.stage_chans]
        heads = [
            # The first exit is computed everywhere.
            ExitHead(width, hidden, num_classes, pools, bn_momentum, conv if exit else plain_conv)
            for exit, (width, (pools, hidden)) in enumerate(zip(chans, head_dims(chans, pooled_dim), strict=True))
        ]
        super().__init__(trunk, heads, adaptive=threshold is not None)
        self.num_classes, self.in_chans, self.criterion = num_classes, in_chans, criterion
        self.thresholds = () if threshold is None else thresholds(threshold)
        init_weights(self, init_std)

    def unsure(self, exit: int, logits: Tensor) -> Tensor:
        """Where the confidence is at most the threshold (see `HRNetExits`)."""
        return unsure(logits, self.thresholds[exit], self.criterion)

    def get_classifier(self) -> nn.Module:
        """The layers that depend on the classes."""
        return nn.ModuleList(exit.get_submodule("classifier") for exit in self.exits)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, in_chans, H, W], sides multiples of 32, to logits [B, K, H, W] of each exit, cheapest first."""
        return [resize(logits, images.shape[-2:]) for logits in iterate(self, images)]


def unsure(logits: Tensor, threshold: float, criterion: str = "max_prob") -> Tensor:
    """Where the confidence of logits [B, K, h, w] is at most a threshold, bool [B, h, w]."""
    return confidence(logits.movedim(1, -1), criterion) <= threshold


def thresholds(threshold: float | Sequence[float]) -> tuple[float, ...]:
    """A threshold for each exit but the last.

    Raises:
        Mistake: Another number of them.
    """
    each = tuple(threshold) if isinstance(threshold, Sequence) else (float(threshold),) * (NUM_EXITS - 1)
    if len(each) != NUM_EXITS - 1 or any(value != value for value in each):
        raise Mistake(f"threshold={threshold} must be one number, or one for each of the first {NUM_EXITS - 1} exits")
    return each
