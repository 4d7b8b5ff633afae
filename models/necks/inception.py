"""A feature pyramid whose laterals look far: seven convolutions of several sizes and dilations, added up.

Reference: "Dynamic Feature Pyramid Networks for Object Detection", arXiv 2012.00779, the static Inception FPN.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.necks.fpn import FPN, Extra

# Kernel size and dilation of each branch, in the published order.
BRANCHES = ((1, 1), (3, 1), (3, 2), (3, 3), (5, 1), (5, 2), (5, 3))
BRANCH_NAMES = tuple(f"{k}x{k}" + (f" dilated by {dilation}" if dilation > 1 else "") for k, dilation in BRANCHES)


class InceptionBlock(nn.ModuleList):
    """Parallel convolutions of a map, each as large as the map, without norm or activation.

    Args:
        in_chans: Channels of the map.
        out_chans: Channels of every branch.
    """

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__(
            nn.Conv2d(in_chans, out_chans, kernel, padding=dilation * (kernel // 2), dilation=dilation)
            for kernel, dilation in BRANCHES
        )

    def forward(self, x: Tensor, branch: int | None = None) -> Tensor:
        """A map [B, in_chans, h, w] to the sum of all branches, or to one of them: [B, out_chans, h, w]."""
        if branch is not None:
            return self[branch](x)
        first, *others = self
        total: Tensor = first(x)
        for other in others:
            total += other(x)
        return total


class InceptionFPN(FPN):
    """A feature pyramid with an inception block for each map.

    Args:
        in_chans, out_chans, extra, input_norm: See `FPN`.
        skip: Whether the usual 1x1 lateral is added to the block.
    """

    def __init__(
        self, in_chans: Sequence[int], out_chans: int, extra: Extra, input_norm: bool = False, skip: bool = True
    ) -> None:
        super().__init__(in_chans, out_chans, extra, input_norm)
        self.skip = skip
        if not skip:
            self.fpn.inner_blocks = nn.ModuleList()
        self.blocks = nn.ModuleList(InceptionBlock(chans, out_chans) for chans in in_chans)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def laterals(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What each map [B, in_chans[i], h_i, w_i] gives to its level [B, out_chans, h_i, w_i]."""
        sums = [block(x) for block, x in zip(self.blocks, maps, strict=True)]
        if not self.skip:
            return sums
        return [lateral + total for lateral, total in zip(super().laterals(maps), sums, strict=True)]
