"""Images of more than 8 bits a channel: to 8 bits, by the depth that the file declares or that its values show."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from PIL import Image, ImageFile

from datamodules.errors import DataError

# Of cameras and scanners, whose values are usually stored in 16 bits as they are.
DEPTHS = (8, 10, 12, 14, 16)
# TIFF's tags of the largest value.
MAX_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE = 281, 341


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has more than 8 bits a channel."""
    return image.mode.startswith("I") or image.mode == "F" or _is_deep_colour(image)


def to_eight_bits(image: Image.Image, data: bytes) -> tuple[np.ndarray, int | None]:
    """Brings an image of more than 8 bits a channel to 8.

    The depth is what the file declares, if no value is larger, else the least of ``DEPTHS`` that holds all values.

    Args:
        image: Not loaded yet.
        data: Its file, of which Pillow has read the header.

    Returns:
        uint8 [H,W] or [H,W,C] (grey and alpha, RGB, or RGB and alpha), and the depth if it is below 16 and was not
        declared.

    Raises:
        DataError: If values are negative, no integers, or have more than 16 bits.
    """
    declared = _declared(image, data)
    values = _colours(data) if _is_deep_colour(image) else np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > 0xFFFF:
        raise DataError(f"pixels of 32 bits from {low} to {high}; convert the image to 8 or 16 bits")
    shown = next(bits for bits in DEPTHS if high < 1 << bits)
    # Alpha is as deep as the file, whatever the colours are.
    bits = declared if declared is not None and int(high) < 1 << declared else shown
    reduced = (values >> (bits - 8)).astype(np.uint8)
    return reduced, bits if bits < 16 and bits != declared else None


def _is_deep_colour(image: Image.Image) -> bool:
    # Pillow gives 16-bit colours as 8-bit ones and keeps the upper half; its raw mode tells.
    if not isinstance(image, ImageFile.ImageFile):
        return False
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile.args) for tile in image.tile)


def _colours(data: bytes) -> np.ndarray:
    """Channels of an image of 16-bit colours, uint16 [H,W,C]."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise DataError("16-bit colours that cannot be decoded; convert the image to 8 bits")
    if values.ndim == 2:
        return values
    return values[..., [2, 1, 0, 3][: values.shape[2]]]


def _declared(image: Image.Image, data: bytes) -> int | None:
    """Bits a channel that a PNG or TIFF says to use of 16, from 8; None if it says nothing of less."""
    bits = None
    if image.format == "PNG":
        at = data.find(b"sBIT", 0, data.find(b"IDAT"))
        if at > 0:
            length = struct.unpack(">I", data[at - 4 : at])[0]
            bits = max(data[at + 4 : at + 4 + length], default=None)
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        largest = tags.get(MAX_SAMPLE_VALUE, tags.get(S_MAX_SAMPLE_VALUE))
        if largest is not None:
            bits = int(np.max(largest)).bit_length()
    return max(bits, 8) if bits is not None and 0 < bits <= 16 else None
