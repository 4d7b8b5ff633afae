"""What a vision transformer of an AutoFormer space costs, by formula: a search asks it thousands of times.

Reference: microsoft/Cream 4a13c4091e78, whose count of multiply-adds is `complexity_official`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """What architectures of a space have in common.

    Args:
        patches: Tokens of an image, without the class token.
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the images.
        num_classes: Classes.
        head_dim: Features of a head.
        largest: Largest distance that relative positions tell from others; None for no such positions.
        qkv_bias: Whether queries, keys and values have a bias.
    """

    patches: int
    patch_size: int
    in_chans: int
    num_classes: int
    head_dim: int = 64
    largest: int | None = 14
    qkv_bias: bool = True


def cost(frame: Frame, width: int, heads: Sequence[int], hidden: Sequence[int]) -> dict[str, float]:
    """Parameters, true multiply-adds of an image, and multiply-adds as the published code has them.

    The published count has a token too many in each layer and the classifier for every token, and does not multiply the
    cost of relative positions by the features of a head.

    Args:
        frame: What is not chosen.
        width: Features of a token, E.
        heads: Of each layer.
        hidden: Features inside the MLP of each layer.
    """
    patches, classes = frame.patches, frame.num_classes
    pixels = frame.in_chans * frame.patch_size**2
    tokens, counted = patches + 1, patches + 2
    related, largest = frame.largest is not None, frame.largest or 0
    params = pixels * width + width + (patches + 2) * width + 2 * width + width * classes + classes
    macs = pixels * patches * width + width * classes
    official = width + pixels * patches * width + (patches + 1) * width / 2 + (patches + 1) * width * classes
    for count, inside in zip(heads, hidden, strict=True):
        inner = count * frame.head_dim
        params += 4 * width + 3 * inner * width + 3 * inner * frame.qkv_bias + inner * width + width
        params += 2 * width * inside + inside + width
        params += 4 * (2 * largest + 2) * frame.head_dim * related
        macs += 4 * tokens * width * inner + 2 * tokens * width * inside
        macs += (4 if related else 2) * tokens**2 * inner
        official += 2 * counted * width + 4 * counted * width * inner + 2 * counted**2 * inner
        official += 2 * counted * width * inside
        official += (2 * largest * counted**2 + counted**2 / 2 + counted * inner / 2) * related
    return {"params": params, "multiply_adds": macs, "complexity_official": official}
