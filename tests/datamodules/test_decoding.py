from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.decoding import HARMLESS, Encoded, decode
from datamodules.errors import DataError
from datamodules.jpeg import decode_region, read_header


def encoded(image: np.ndarray | Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, form, **options)
    return stream.getvalue()


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
def test_every_format_becomes_rgb(photo: np.ndarray, form: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(encoded(photo, form))
    for image in (decode(file), decode(file.read_bytes())):
        assert image.shape == photo.shape
        assert image.dtype == np.uint8
        assert mean_difference(image, photo) < (8 if form == "GIF" else 4)


def test_jpeg_agrees_with_pillow(photo: np.ndarray) -> None:
    data = encoded(photo, quality=90)
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_jpeg_has_three_equal_channels(photo: np.ndarray) -> None:
    image = decode(encoded(Image.fromarray(photo).convert("L")))
    assert image.shape == (375, 500, 3)
    assert (image == image[..., :1]).all()


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    image = decode(encoded(Image.fromarray(red).convert("CMYK"), quality=95))
    assert mean_difference(image, red) < 6


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for form in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(ramp), form))
        assert np.array_equal(image[..., 0], (ramp >> 8).astype(np.uint8)), form


def test_sixteen_bit_colour_png() -> None:
    colour = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    image = decode(cv2.imencode(".png", colour[..., ::-1])[1].tobytes())
    assert np.abs(image.astype(int) - (colour >> 8)).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "colour", "alpha"])
def test_fewer_bits_in_sixteen_are_not_black(kind: str, bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (16, 16, 4)).astype(np.uint16)
    values[0, 0] = (1 << bits) - 1
    if kind == "colour":
        data, values = cv2.imencode(".png", values[..., 2::-1])[1].tobytes(), values[..., :3]
    elif kind == "alpha":
        values[..., 3] = (1 << bits) - 1
        data, values = cv2.imencode(".png", values[..., [2, 1, 0, 3]])[1].tobytes(), values[..., :3]
    else:
        data, values = encoded(Image.fromarray(values[..., 0]), kind), values[..., :1].repeat(3, axis=2)
    with pytest.warns(UserWarning, match=f"without a value of {1 << bits:,} or more are taken for {bits}-bit ones"):
        image = decode(data)
    assert np.array_equal(image, (values >> bits - 8).astype(np.uint8))


def test_the_depth_that_a_file_declares_is_taken(recwarn: pytest.WarningsRecorder) -> None:
    dark = np.full((4, 4), 130, np.uint16)
    png = encoded(Image.fromarray(dark), "PNG")
    at = png.index(b"IDAT") - 4
    chunk = b"sBIT" + bytes([12])
    declared = png[:at] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[at:]
    assert decode(declared)[0, 0].tolist() == [130 >> 4] * 3
    tiff = encoded(Image.fromarray(dark), "TIFF", tiffinfo={281: 4095})
    assert decode(tiff)[0, 0].tolist() == [130 >> 4] * 3
    assert not recwarn.list
    # What is larger than declared is not.
    with pytest.warns(UserWarning, match="taken for 14-bit ones"):
        assert decode(encoded(Image.fromarray(dark * 100), "TIFF", tiffinfo={281: 4095}))[0, 0, 0] == 13000 >> 6


def test_float_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="32 bits"):
        decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_transparency_is_laid_on_white() -> None:
    colours = np.zeros((2, 2, 4), np.uint8)
    colours[0, :] = [255, 0, 0, 255]
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    grey = Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), mode="LA")
    assert decode(encoded(colours, "PNG")).tolist() == [[[255, 0, 0]] * 2, [[255, 255, 255]] * 2]
    with_hole = decode(encoded(palette, "PNG", transparency=1)).tolist()
    assert with_hole == [[[255, 0, 0], [255, 255, 255]], [[255, 255, 255], [255, 0, 0]]]
    assert decode(encoded(palette, "PNG")).tolist()[0] == [[255, 0, 0], [0, 255, 0]]
    assert decode(encoded(grey, "PNG")).tolist() == [[[9, 9, 9], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = [250, 0, 0]
    upright[:16, 24:] = [0, 250, 0]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored), exif=exif, quality=95, subsampling=0)
    assert mean_difference(decode(data), upright) < 3
    opened = Encoded(data).open()
    assert (opened.height, opened.width) == (32, 48)
    assert mean_difference(opened.region((0, 0, 24, 16), 16, 24), upright[:16, :24]) < 3


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert mean_difference(decode(data), np.asarray(frames[0])) < 3, form


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_one_pixel_is_an_image(form: str) -> None:
    assert decode(encoded(np.full((1, 1, 3), 77, np.uint8), form)).tolist() == [[[77, 77, 77]]]


def test_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"\0" * 30_000, 9)
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    jpeg = bytearray(encoded(np.zeros((8, 8, 3), np.uint8)))
    at = read_header(bytes(jpeg)).height_at
    jpeg[at : at + 4] = struct.pack(">HH", 30_000, 30_000)
    for data in (png, bytes(jpeg)):
        with pytest.raises(DataError, match=r"bomb|too large"):
            decode(data)


def test_a_header_that_claims_what_its_bytes_cannot_hold_is_refused(tmp_path: Path) -> None:
    side = 9400
    gif = b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    gif += b"," + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0" + b"\x02\x02\x44\x01\0" + b";"
    bmp = bytearray(encoded(np.zeros((8, 8, 3), np.uint8), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    jpeg = bytearray(encoded(np.zeros((8, 8, 3), np.uint8)))
    at = read_header(bytes(jpeg)).height_at
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    for data in (gif, bytes(bmp), bytes(jpeg)):
        for use in (decode, lambda data: Encoded(data).reduced(100), lambda data: Encoded(data).size()):
            with pytest.raises(DataError, match=rf"claims 9400x9400 pixels, which its {len(data):,} bytes cannot hold"):
                use(data)
    # What is large and empty, or small and nothing, is an image.
    assert decode(encoded(Image.new("1", (6000, 6000)), "PNG")).shape == (6000, 6000, 3)
    assert HARMLESS > 2000 * 2000
    assert decode(encoded(Image.new("L", (2000, 2000)), "WEBP", lossless=True)).shape == (2000, 2000, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "CMYK", "turned", "grey", "sixteen"])
def test_a_picture_is_decoded_at_about_its_size(photo: np.ndarray, form: str) -> None:
    image, options = Image.fromarray(photo), {}
    if form == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image, options = image.transpose(Image.Transpose.ROTATE_90), {"exif": exif.tobytes()}
    elif form == "CMYK":
        image = image.convert("CMYK")
    elif form == "grey":
        image = image.convert("L")
    elif form == "sixteen":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    data = encoded(image, {"PNG": "PNG", "sixteen": "PNG"}.get(form, "JPEG"), **options)
    whole = decode(data)
    assert Encoded(data).size() == whole.shape[:2] == (375, 500)
    for longest in (500, 499, 250, 100, 33, 1):
        small = Encoded(data).reduced(longest)
        assert small.shape[:2] == (max(1, round(375 * longest / 500)), longest)
        expected = cv2.resize(whole, (small.shape[1], small.shape[0]), interpolation=cv2.INTER_AREA)
        assert mean_difference(small, expected) < 3, longest
    assert np.array_equal(Encoded(data).reduced(2000), whole)


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"hello, not an image", "not an image")])
def test_what_is_no_image_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        decode(file)


def test_missing_files_and_folders_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        decode(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="directory"):
        decode(tmp_path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9, 0.995])
def test_truncated_files_are_refused(photo: np.ndarray, form: str, part: float) -> None:
    data = encoded(photo, form)
    cut = data[: int(len(data) * part)]
    with pytest.raises(DataError):
        decode(cut)
    with pytest.raises(DataError):
        Encoded(cut).open().region((0, 0, 100, 50), 25, 50)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_and_closed_is_truncated(photo: np.ndarray, progressive: bool) -> None:
    data = encoded(photo, progressive=progressive)
    cut = data[: len(data) * 2 // 3] + b"\xff\xd9"
    height, width = photo.shape[:2]
    uses: list[Any] = [decode, lambda data: Encoded(data).reduced(60)]
    uses.append(lambda data: Encoded(data).open().region((0, 0, width, height), height // 4, width // 4))
    for use in uses:
        with pytest.raises(DataError, match="corrupt or truncated"):
            use(cut)


def test_a_jpeg_cut_after_its_thumbnail_is_truncated(photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x010E] = "thumbnail \xff\xd9 here"
    data = encoded(photo, exif=exif.tobytes() + b"\xff\xd9")
    with pytest.raises(DataError, match="truncated"):
        decode(data[:-2])


def test_damaged_jpeg_data_are_refused(photo: np.ndarray) -> None:
    data = bytearray(encoded(photo))
    middle = len(data) // 2
    # An end marker in the middle: what follows is missing.
    data[middle : middle + 2] = b"\xff\xd9"
    with pytest.raises(DataError, match="corrupt"):
        decode(bytes(data))


def test_bytes_after_the_image_are_harmless(photo: np.ndarray) -> None:
    data = encoded(photo)
    assert np.array_equal(decode(data + b"camera's own notes" * 100), decode(data))
    surplus = data[:-2] + b"\0" * 50 + data[-2:]
    assert np.array_equal(decode(surplus), decode(data))


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF"])
)
def test_no_bytes_raise_anything_else(content: bytes, magic: bytes) -> None:
    with pytest.raises(DataError):
        decode(magic + content)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    grey=st.booleans(),
    scale=st.sampled_from([1, 2, 4, 8]),
    size=st.tuples(st.integers(17, 140), st.integers(17, 140)),
)
def test_a_region_has_the_pixels_of_the_whole(
    data: st.DataObject, subsampling: int, progressive: bool, grey: bool, scale: int, size: tuple[int, int]
) -> None:
    height, width = size
    source = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(source).convert("L" if grey else "RGB")
    options = {} if grey else {"subsampling": subsampling}
    file = encoded(image, quality=85, progressive=progressive, **options)
    header = read_header(file)
    assert (header.height, header.width) == size
    assert header.sequential != progressive
    top = scale * data.draw(st.integers(0, (height - 1) // scale - 1))
    bottom = min(height, top + scale * data.draw(st.integers(1, height // scale)))
    left = scale * data.draw(st.integers(0, (width - 1) // scale - 1))
    right = min(width, left + scale * data.draw(st.integers(1, width // scale)))
    region = decode_region(file, header, (left, top, right, bottom), scale)
    whole = decode_region(file, header, (0, 0, width, height), scale)
    assert whole.shape[:2] == (-(-height // scale), -(-width // scale))
    assert np.array_equal(region, whole[top // scale : -(-bottom // scale), left // scale : -(-right // scale)])


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_regions_are_never_smaller_than_what_they_become(
    data: st.DataObject, size: tuple[int, int], target: tuple[int, int]
) -> None:
    height, width = size
    top = data.draw(st.integers(0, height - 1))
    left = data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    opened = Encoded(encoded(np.zeros((height, width, 3), np.uint8))).open()
    region = opened.region((left, top, right, bottom), *target)
    assert region.shape[0] >= min(target[0], bottom - top)
    assert region.shape[1] >= min(target[1], right - left)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_reduced_decoding_looks_like_antialiased_resizing(photo: np.ndarray, scale: int) -> None:
    large = np.asarray(Image.fromarray(photo).resize((1600, 1200), Image.Resampling.BICUBIC))
    file = encoded(large, quality=92)
    size = (1600 // scale, 1200 // scale)
    reference = np.asarray(Image.open(io.BytesIO(file)).resize(size, Image.Resampling.BOX)).astype(float)
    reduced = Encoded(file).open().region((0, 0, 1600, 1200), size[1], size[0])
    error = ((reduced - reference) ** 2).mean()
    assert reduced.shape[:2] == (size[1], size[0])
    assert 10 * np.log10(255**2 / error) > 38
