"""What a set-prediction network hands to its criterion and its post-processing."""

from typing import NamedTuple

from torch import Tensor


class Predictions(NamedTuple):
    """Predictions of Q queries on a batch of B images after each of L decoder layers, in their order.

    An evaluation needs the last layer only: L is 1 then.

    Attributes:
        logits: [L, B, Q, C].
        boxes: [L, B, Q, 4], (cx, cy, w, h) relative to the image without its padding.
        vectors: [L, B, Q, V] mask codes, of networks that predict them.
        masks: [B, Q, h, w] logits over the padded image, of networks that predict them, after the last layer only.
    """

    logits: Tensor
    boxes: Tensor
    vectors: Tensor | None = None
    masks: Tensor | None = None
