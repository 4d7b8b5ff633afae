"""JPEG decoding of only what is needed: the rows down to the end of a crop, at the scale the crop will have.

Entropy decoding dominates the cost of a photograph and can only start at the top. A decoder stops at the height that
the header announces, so announcing the last row needed stops it there. Below that, the inverse transform can give
1/2, 1/4 or 1/8 of the size directly (ITU T.81, A.3.3 evaluated on the low frequencies).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg

from datamodules.errors import DataError

START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
START_OF_SCAN, END_OF_IMAGE, APP1 = 0xDA, 0xD9, 0xE1
BASELINE = frozenset({0xC0, 0xC1})
SCALES = (8, 4, 2)
# The last row's colour is interpolated with the next colour row, two rows down when colour has half the height and
# four in the rare case of a quarter.
UPSAMPLING_ROWS = 4
# What libjpeg says when pixels are made up. It also warns of harmless things, such as bytes after the image.
DAMAGE = ("premature end", "bad huffman", "inconsistent progression", "bogus", "restart marker", "arithmetic")


@dataclass(frozen=True)
class Header:
    """What a JPEG file says before its pixels.

    Args:
        width: Stored width in pixels.
        height: Stored height in pixels.
        components: Channels: 1 grey, 3 colour, 4 CMYK.
        precision: Bits a channel.
        sequential: Whether rows come from top to bottom in one pass.
        exif: Whether there is an EXIF block, which may ask for a rotation.
        height_at: Position of the height's two bytes.
    """

    width: int
    height: int
    components: int
    precision: int
    sequential: bool
    exif: bool
    height_at: int


def read_header(data: bytes) -> Header:
    """Reads the size and kind of a JPEG without decoding it.

    Raises:
        DataError: If the header is damaged, or the file ends before the image does.
    """
    try:
        position, exif, frame = 2, False, None
        while True:
            if data[position] != 0xFF:
                raise DataError(f"the JPEG header is corrupt at byte {position}")
            marker = data[position + 1]
            if marker == 0xFF:  # padding
                position += 1
                continue
            if marker in START_OF_FRAME:
                frame = marker, position + 5
            elif marker == APP1:
                exif = exif or data[position + 4 : position + 8] == b"Exif"
            elif marker == START_OF_SCAN:
                break
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    except IndexError:
        raise DataError("the JPEG file is truncated inside its header") from None
    if frame is None:
        raise DataError("the JPEG header is corrupt: no frame before the first scan")
    if data.rfind(bytes([0xFF, END_OF_IMAGE])) < position:
        raise DataError("the JPEG file is truncated: the end-of-image marker is missing")
    kind, at = frame
    height, width = data[at] << 8 | data[at + 1], data[at + 2] << 8 | data[at + 3]
    if not (height and width):
        raise DataError(f"the JPEG header is corrupt: size {width}x{height}")
    return Header(width, height, data[at + 4], data[at - 1], kind in BASELINE, exif, at)


def is_plain(header: Header) -> bool:
    """Whether pixels can be taken as they come: grey or colour of 8 bits."""
    return header.components in (1, 3) and header.precision == 8


def reduction(box_height: int, box_width: int, height: int, width: int) -> int:
    """Largest factor 1, 2, 4 or 8 by which a box can be reduced and stay at least as large as height x width."""
    for scale in SCALES:
        if box_height >= height * scale and box_width >= width * scale:
            return scale
    return 1


def decode_jpeg(data: bytes, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """Decodes a whole plain JPEG to RGB, uint8 [H,W,3].

    Args:
        data: The file.
        min_height: Rows that the result has at least, if it may be reduced to 1/2, 1/4 or 1/8; 0 if it may not.
        min_width: Columns likewise.

    Raises:
        DataError: If the pixels are damaged or cut off.
    """
    least = {"min_height": min_height, "min_width": min_width}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError as problem:
        if any(sign in str(problem).lower() for sign in DAMAGE):
            raise DataError(f"the JPEG data are corrupt or truncated: {problem}") from problem
    try:
        return simplejpeg.decode_jpeg(data, "RGB", **least, strict=False)
    except ValueError as problem:
        raise DataError(f"the JPEG data are corrupt: {problem}") from problem


def decode_region(data: bytes, header: Header, box: tuple[int, int, int, int], scale: int) -> np.ndarray:
    """Decodes a box of a plain JPEG at reduced scale.

    Rows below the box are not decoded, so damage there goes unnoticed.

    Args:
        data: The file.
        header: Its header.
        box: Left, top, right, bottom in stored pixels; multiples of ``scale``, or the image's edge.
        scale: 1, 2, 4 or 8.

    Returns:
        RGB, uint8 [ceil(height / scale), ceil(width / scale), 3] of the box; the same pixels as cutting it from the
        whole image decoded at that scale.

    Raises:
        DataError: If the pixels cannot be decoded.
    """
    left, top, right, bottom = box
    rows = min(header.height, bottom + UPSAMPLING_ROWS * scale)
    if rows < header.height and header.sequential:
        shortened = bytearray(data)
        shortened[header.height_at : header.height_at + 2] = rows.to_bytes(2, "big")
        data = bytes(shortened)
    elif scale == 1:
        return decode_jpeg(data)[top:bottom, left:right]
    else:
        pixels = decode_jpeg(data, -(-header.height // scale), -(-header.width // scale))
        return pixels[top // scale : -(-bottom // scale), left // scale : -(-right // scale)]
    try:
        # Not strict: what follows the last row is reported as surplus bytes.
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-rows // scale), min_width=-(-header.width // scale), strict=False
        )
    except ValueError as problem:
        raise DataError(f"the JPEG data are corrupt: {problem}") from problem
    return pixels[top // scale : -(-bottom // scale), left // scale : -(-right // scale)]
