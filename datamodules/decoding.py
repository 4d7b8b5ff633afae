"""Image files to RGB arrays: every format, mode and orientation, and one error for what cannot be decoded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datamodules.errors import DataError
from datamodules.jpeg import Header, decode_jpeg, decode_region, is_plain, read_header, reduction

# Decoded, this is a quarter of a gigabyte a worker; Pillow calls larger images suspicious, too.
MAX_PIXELS = 89_478_485
Box = tuple[int, int, int, int]


def decode(data: bytes | Path) -> np.ndarray:
    """Decodes an image file.

    EXIF orientation is applied; CMYK, grey, 16-bit and palette images become 8-bit RGB; transparency is laid on white;
    of an animation the first frame is taken.

    Args:
        data: The file or its contents.

    Returns:
        RGB, uint8 [H,W,3].

    Raises:
        DataError: If the file cannot be read, is no image, is damaged, or has more than ``MAX_PIXELS`` pixels.
    """
    return Encoded(data).decode()


class Encoded:
    """An image that is not decoded yet, so that a crop can be decoded instead of the whole.

    Args:
        data: The file or its contents.
    """

    def __init__(self, data: bytes | Path) -> None:
        self.data = data

    def decode(self) -> np.ndarray:
        """The whole image, RGB uint8 [H,W,3]; see ``decode``."""
        data = self._read()
        header = _jpeg_header(data)
        return _decode_any(data) if header is None else decode_jpeg(data)

    def open(self) -> OpenImage:
        """Reads the file as far as its size.

        Raises:
            DataError: As ``decode``.
        """
        data = self._read()
        return OpenImage(data, _jpeg_header(data))

    def _read(self) -> bytes:
        if isinstance(self.data, Path):
            try:
                data = self.data.read_bytes()
            except OSError as problem:
                raise DataError(f"cannot be read: {problem.strerror or problem}") from problem
        else:
            data = self.data
        if not data:
            raise DataError("the file is empty")
        return data


class OpenImage:
    """An image of known size whose regions can be decoded.

    Args:
        data: The file's contents.
        header: JPEG header if regions can be decoded on their own, None if the image must be decoded as a whole.

    Attributes:
        height: Rows, after EXIF orientation.
        width: Columns, after EXIF orientation.
    """

    def __init__(self, data: bytes, header: Header | None) -> None:
        self.data, self.header = data, header
        self._pixels = np.empty(0) if header is not None else _decode_any(data)
        self.height, self.width = (header.height, header.width) if header else self._pixels.shape[:2]

    def region(self, box: Box, height: int, width: int) -> np.ndarray:
        """A box that will be resized to height x width, at a scale that is no smaller and costs least.

        Args:
            box: Left, top, right, bottom in pixels.
            height: Rows it will be resized to.
            width: Columns it will be resized to.

        Returns:
            RGB, uint8 [h,w,3] with h >= height and w >= width where the box is that large; edges are moved to multiples
            of the scale (at most 4 pixels when that is 1/8, half a pixel of the result).

        Raises:
            DataError: If the pixels cannot be decoded.
        """
        left, top, right, bottom = box
        if self.header is None:
            return self._pixels[top:bottom, left:right]
        scale = reduction(bottom - top, right - left, height, width)
        if scale > 1:
            top, bottom = _snap(top, bottom, scale, self.height, height)
            left, right = _snap(left, right, scale, self.width, width)
        return decode_region(self.data, self.header, (left, top, right, bottom), scale)


def _snap(low: int, high: int, scale: int, limit: int, length: int) -> tuple[int, int]:
    """Moves an interval to multiples of the scale, at least length * scale long."""
    low = min(round(low / scale) * scale, limit // scale * scale - length * scale)
    high = round(high / scale) * scale
    return low, min(max(high, low + length * scale), -(-limit // scale) * scale)


def _jpeg_header(data: bytes) -> Header | None:
    """Header of a JPEG that is decoded as it is stored; None for everything that takes Pillow."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    header = read_header(data)
    _check_size(header.width, header.height)
    if not is_plain(header):
        return None
    if header.exif and Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) != 1:
        return None
    return header


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{width}x{height} pixels are more than the {MAX_PIXELS:,} that are decoded (a decompression bomb?). "
            "Scale the image down."
        )


def _decode_any(data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata; the first is an error here and the second no concern.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            _check_size(*image.size)
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except DataError:
        raise
    except Image.UnidentifiedImageError as problem:
        raise DataError(f"not an image of a known format (it starts with {data[:8]!r})") from problem
    except Image.DecompressionBombError as problem:
        raise DataError(f"too large: {problem}") from problem
    except Exception as problem:
        # Pillow's plug-ins raise whatever a broken file makes them stumble over.
        raise DataError(f"the image is corrupt or truncated: {type(problem).__name__}: {problem}") from problem


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise DataError(
                f"pixels of 32 bits from {pixels.min()} to {pixels.max()}; convert the image to 8 or 16 bits"
            )
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
