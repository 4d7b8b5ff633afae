"""Image files to RGB arrays: every format, mode and orientation, and one error for what cannot be decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datamodules.depths import is_deep, to_eight_bits
from datamodules.errors import DataError
from datamodules.finding import read_file
from datamodules.jpeg import Header, decode_jpeg, decode_region, is_plain, read_header, reduction

# Decoded, this is a quarter of a gigabyte a worker; Pillow calls larger images suspicious, too.
MAX_PIXELS = 89_478_485
# A black page of one bit a pixel, compressed as PNG, has 8,000 pixels a byte; a header that claims more is lying, or
# there is nothing in the image. Images of few pixels do no harm.
MAX_PIXELS_A_BYTE = 10_000
HARMLESS = 1 << 22
ORIENTATION = 0x0112
UPRIGHT = 1
# What makes an image upright, by its orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Box = tuple[int, int, int, int]


def decode(data: bytes | Path) -> np.ndarray:
    """Decodes an image file.

    EXIF orientation is applied; CMYK, grey, 16-bit and palette images become 8-bit RGB; transparency is laid on white;
    of an animation, or of several pages, the first is taken.

    Args:
        data: The file or its contents.

    Returns:
        RGB, uint8 [H,W,3].

    Raises:
        DataError: If the file cannot be read, is no image, is damaged, or claims more pixels than ``MAX_PIXELS`` or
            than its bytes can hold.
    """
    return Encoded(data).decode()


class Encoded:
    """An image that is not decoded yet, so that a crop can be decoded instead of the whole.

    Args:
        data: The file or its contents.

    Attributes:
        orientation: What EXIF says, 1 to 8, once the whole image is decoded; 1 is upright.
    """

    def __init__(self, data: bytes | Path) -> None:
        self.data = data
        self.orientation = UPRIGHT

    @property
    def is_turned(self) -> bool:
        """Whether EXIF turns the image upright, once the whole image is decoded."""
        return self.orientation in TURNS

    def decode(self) -> np.ndarray:
        """The whole image, RGB uint8 [H,W,3]; see ``decode``."""
        data = self._read()
        if _jpeg_header(data) is not None:
            return decode_jpeg(data)
        pixels, self.orientation = _decode_any(data)
        return pixels

    def reduced(self, longest: int) -> np.ndarray:
        """The image with its longer side of at most so many pixels, decoded at about that size where it can be.

        Args:
            longest: Pixels of the longer side; smaller images stay as they are.

        Returns:
            RGB, uint8 [H,W,3].

        Raises:
            DataError: As ``decode``.
        """
        data = self._read()
        header = _jpeg_header(data)
        if header is None:
            return fitted(_decode_any(data, longest)[0], longest)
        height, width = header.height, header.width
        # At twice the size or more, so that what is left out is averaged over.
        scale = next((each for each in (8, 4, 2) if max(height, width) >= 2 * each * longest), 1)
        return fitted(decode_region(data, header, (0, 0, width, height), scale), longest, (height, width))

    def size(self) -> tuple[int, int]:
        """Height and width as ``decode`` gives them, by the header alone.

        Raises:
            DataError: If there is no readable header.
        """
        data = self._read()
        header = _jpeg_header(data)
        if header is not None:
            return header.height, header.width
        with opened(data) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(ORIENTATION) in (5, 6, 7, 8) else (height, width)

    def open(self) -> OpenImage:
        """Reads the file as far as its size.

        Raises:
            DataError: As ``decode``.
        """
        data = self._read()
        return OpenImage(data, _jpeg_header(data))

    def _read(self) -> bytes:
        data = read_file(self.data) if isinstance(self.data, Path) else self.data
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
        self._pixels = np.empty(0) if header is not None else _decode_any(data)[0]
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


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Opens a picture of any format with Pillow, without decoding it, and makes one error of what goes wrong with it.

    Args:
        data: The file.

    Raises:
        DataError: If it is no picture, claims too many pixels, or turns out to be damaged while it is used.
    """
    try:
        image = Image.open(io.BytesIO(data))
        _check_size(*image.size, len(data))
        yield image
    except DataError:
        raise
    except Image.UnidentifiedImageError as problem:
        raise DataError(f"not an image of a known format (it starts with {data[:8]!r})") from problem
    except Image.DecompressionBombError as problem:
        raise DataError(f"too large: {problem}") from problem
    except Exception as problem:
        # Pillow's plug-ins raise whatever a broken file makes them stumble over.
        raise DataError(f"the image is corrupt or truncated: {type(problem).__name__}: {problem}") from problem


def fitted(pixels: np.ndarray, longest: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Pixels with a longer side of at most so many, in proportion.

    Args:
        pixels: uint8 [H,W,3].
        longest: Pixels of the longer side.
        size: Height and width that the proportion is that of, if these pixels are reduced already.
    """
    height, width = size or pixels.shape[:2]
    if max(height, width) <= longest:
        return pixels
    return cv2.resize(pixels, _within((width, height), longest), interpolation=cv2.INTER_AREA)


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    return width, height


def _jpeg_header(data: bytes) -> Header | None:
    """Header of a JPEG that is decoded as it is stored; None for everything that takes Pillow."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    header = read_header(data)
    _check_size(header.width, header.height, len(data))
    if not is_plain(header):
        return None
    if header.exif and Image.open(io.BytesIO(data)).getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT:
        return None
    return header


def _check_size(width: int, height: int, length: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{width}x{height} pixels are more than the {MAX_PIXELS:,} that are decoded (a decompression bomb?). "
            "Scale the image down."
        )
    if width * height > max(HARMLESS, length * MAX_PIXELS_A_BYTE):
        raise DataError(
            f"its header claims {width}x{height} pixels, which its {length:,} bytes cannot hold (a damaged file, or a "
            "decompression bomb?)"
        )


def _decode_any(data: bytes, longest: int | None = None) -> tuple[np.ndarray, int]:
    """RGB pixels, turned upright, and the orientation they had; reduced to about ``longest`` where that saves work."""
    with warnings.catch_warnings():
        # Pillow warns of large images and of odd metadata; the first is an error here and the second no concern.
        warnings.simplefilter("ignore")
        with opened(data) as image:
            whole = image.size
            if longest is not None:
                image.draft(image.mode, (2 * longest, 2 * longest))
            # First, as Pillow loads some formats when it is asked for their orientation.
            values, guessed = to_eight_bits(image, data) if is_deep(image) else (None, None)
            orientation = image.getexif().get(ORIENTATION)
            orientation = orientation if orientation in TURNS else UPRIGHT
            image = image if values is None else Image.fromarray(values)
            image.load()
            if longest is not None and max(whole) > longest and image.mode in ("L", "RGB", "RGBA", "CMYK"):
                image = image.resize(_within(whole, longest), Image.Resampling.BOX)
            if orientation in TURNS:
                image = image.transpose(TURNS[orientation])
            pixels = np.array(_to_rgb(image))
    if guessed is not None:
        warnings.warn(
            f"16-bit images without a value of {1 << guessed:,} or more are taken for {guessed}-bit ones and made as "
            "bright. Write 8-bit images, or their depth into the files (sBIT in PNG, MaxSampleValue in TIFF), if they "
            "are not.",
            stacklevel=2,
        )
    return pixels, orientation


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
