"""Non-maximum suppression within classes, or within levels of a pyramid."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms


def suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """The boxes that no better one of their group overlaps much.

    Args:
        boxes: [N, 4], x1 y1 x2 y2.
        scores: [N].
        groups: Of which each box is [N], int64.
        threshold: Overlap (IoU) above which the lower-scored box goes.

    Returns:
        Indices of those that stay, best first.
    """
    if not torch.compiler.is_exporting():
        return batched_nms(boxes, scores, groups, threshold)
    # The same without a choice between two ways by the number of boxes, which a graph cannot know: groups side by side.
    reach = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    return nms(boxes + (groups.to(boxes) * reach)[:, None], scores, threshold)
