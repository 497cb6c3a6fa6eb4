"""Decoding against files written here byte by byte, so that no library agrees with itself; resizing by matrices."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_ad.errors import ColorError, DataNotFoundError, FrameError, InputError, PixelFormatError, UnreadableImageError
from edge_ad.imaging import (
    Alpha,
    PixelFormat,
    cover_mask,
    image_files,
    image_size,
    natural_sort,
    read_image,
    read_mask,
    resize,
    resize_map,
    resize_mask,
    to_image,
    to_rgb,
    to_uint8,
    write_png,
)

HEIGHT, WIDTH = 13, 17

# --- files ------------------------------------------------------------------------------------------------------------


def png(pixels: NDArray[Any]) -> bytes:
    """(H, W, C) uint8 or uint16; C: grey, grey + alpha, RGB, RGBA."""
    height, width, channels = pixels.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def bmp(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) RGB: rows from the bottom, blue first, padded to four bytes."""
    height, width, _ = pixels.shape
    rows = b"".join(row[:, ::-1].tobytes() + bytes(-3 * width % 4) for row in pixels[::-1])
    file_header = b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54)
    return file_header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(rows), 2835, 2835, 0, 0) + rows


def tiff(pixels: NDArray[Any]) -> bytes:
    """(H, W, C) of any dtype; C: grey, RGB, RGBA with unassociated alpha. One strip, after the directory."""
    height, width, channels = pixels.shape
    sample_format = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    short, long = 3, 4
    tags = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [8 * pixels.itemsize] * channels),
        (259, short, [1]),  # no compression
        (262, short, [1 if channels == 1 else 2]),  # grey, RGB
        (273, long, [0]),  # where the strip begins: set below
        (277, short, [channels]),
        (278, long, [height]),
        (279, long, [pixels.nbytes]),
        *([(338, short, [2])] if channels == 4 else []),  # unassociated alpha
        (339, short, [sample_format] * channels),
    ]
    long_values_at = 8 + 2 + 12 * len(tags) + 4
    long_values = b"".join(struct.pack(f"<{len(v)}H", *v) for _, _, v in tags if len(v) > 2)
    entries, at = b"", long_values_at
    for tag, kind, values in tags:
        if tag == 273:
            values = [long_values_at + len(long_values)]
        if len(values) > 2:
            content, at = struct.pack("<I", at), at + 2 * len(values)
        else:
            content = struct.pack("<" + ("H" if kind == short else "I") * len(values), *values).ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, len(values)) + content
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + long_values + pixels.tobytes()


def jpeg(pixels: NDArray[np.uint8], *segments: bytes) -> bytes:
    """(H, W, 3) RGB or (H, W) grey, with APP1 segments after the start mark."""
    encoded = cv2.imencode(".jpg", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()
    return encoded[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + encoded[2:]


def noise(*shape: int, dtype: type = np.uint8, below: int = 256) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, below, shape).astype(dtype)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes, str], Path]:
    def write(content: bytes, name: str = "image.any") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def eight_bits(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """value * 255 / (2^bits - 1), rounded, in whole numbers. No value lies half way: the divisor is odd."""
    largest = 2**bits - 1
    return ((2 * 255 * pixels.astype(np.int64) + largest) // (2 * largest)).astype(np.uint8)


def over(colors: NDArray[Any], opacity: NDArray[Any], ground: int) -> NDArray[np.uint8]:
    """Eight-bit compositing in whole numbers."""
    c, a = colors.astype(np.int64), opacity.astype(np.int64)
    return ((2 * (c * a + ground * (255 - a)) + 255) // 510).astype(np.uint8)


@pytest.mark.parametrize("encode", [png, bmp, tiff])
def test_eight_bit_colours_are_read_as_they_are(write, encode):
    pixels = noise(HEIGHT, WIDTH, 3)
    image = read_image(write(encode(pixels)))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)
    assert image_size(write(encode(pixels))) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("encode", [png, tiff])
def test_grey_is_repeated(write, encode):
    pixels = noise(HEIGHT, WIDTH, 1)
    np.testing.assert_array_equal(read_image(write(encode(pixels))), pixels.repeat(3, axis=2))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encode", [png, tiff])
def test_sixteen_bit_files_scale_by_their_declared_bits(write, encode, channels, bits):
    pixels = noise(HEIGHT, WIDTH, channels, dtype=np.uint16, below=2**bits)
    pixels[0, 0], pixels[0, 1] = 0, 2**bits - 1
    image = read_image(write(encode(pixels)), PixelFormat(bits))
    np.testing.assert_array_equal(image, np.broadcast_to(eight_bits(pixels, bits), image.shape))
    assert (image[0, 0].tolist(), image[0, 1].tolist()) == ([0] * 3, [255] * 3)


def test_a_dark_file_stays_dark_unless_its_bits_are_declared(write):
    path = write(png(noise(HEIGHT, WIDTH, 3, dtype=np.uint16, below=2**12)))
    assert read_image(path).max() == read_image(path, PixelFormat(16)).max() == 16  # 4095 / 257
    assert read_image(path, PixelFormat(12)).max() == 255


def test_a_value_beyond_the_declared_bits_is_an_error(write):
    pixels = np.full((HEIGHT, WIDTH, 1), 4096, np.uint16)
    with pytest.raises(PixelFormatError, match=r"a\.png: a pixel of 4096 exceeds the declared 12 bits; declare more"):
        read_image(write(png(pixels), "a.png"), PixelFormat(12))


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_dropped_or_composited_as_declared(write, channels):
    pixels = noise(HEIGHT, WIDTH, channels)
    pixels[0, :3, -1] = 0, 255, 1
    path = write(png(pixels))
    colors, opacity = np.broadcast_to(pixels[..., :-1], (HEIGHT, WIDTH, 3)), pixels[..., -1:]
    np.testing.assert_array_equal(read_image(path), colors)
    np.testing.assert_array_equal(read_image(path, PixelFormat(alpha=Alpha.DROP)), colors)
    np.testing.assert_array_equal(read_image(path, PixelFormat(alpha=Alpha.BLACK)), over(colors, opacity, 0))
    np.testing.assert_array_equal(read_image(path, PixelFormat(alpha=Alpha.WHITE)), over(colors, opacity, 255))


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("encode", [png, tiff])
def test_opacity_has_full_range_whatever_the_bits_of_the_colours(write, encode, bits):
    pixels = noise(HEIGHT, WIDTH, 4, dtype=np.uint16, below=2**bits)
    pixels[..., 3] = noise(HEIGHT, WIDTH, dtype=np.uint16, below=2**16)
    pixels[0, :2, 3] = 0, 65535
    path, weight = write(encode(pixels)), pixels[..., 3:] / 65535
    colors = pixels[..., :3] * (255 / (2**bits - 1))
    np.testing.assert_array_equal(read_image(path, PixelFormat(bits)), eight_bits(pixels[..., :3], bits))
    for alpha, ground in ((Alpha.BLACK, 0), (Alpha.WHITE, 255)):
        image = read_image(path, PixelFormat(bits, alpha))
        # colours are rounded, then composited and rounded again: at most half a level each
        np.testing.assert_allclose(image, colors * weight + ground * (1 - weight), atol=1.001)
        assert image[0, 0].tolist() == [ground] * 3


def test_a_transparent_eight_bit_tiff_is_refused_since_its_decoder_changes_the_colours(write):
    pixels = noise(HEIGHT, WIDTH, 4)
    pixels[..., 3] = 255
    for alpha in Alpha:
        np.testing.assert_array_equal(read_image(write(tiff(pixels)), PixelFormat(alpha=alpha)), pixels[..., :3])
    pixels[5, 7, 3] = 254
    for read in (read_image, read_mask):
        with pytest.raises(PixelFormatError, match="8-bit TIFF with transparent pixels is ambiguous; save it as PNG"):
            read(write(tiff(pixels)))


@pytest.mark.parametrize("rgb", [(230, 40, 90), (12, 200, 60), (128, 128, 128)])
def test_jpeg_colours(write, rgb):
    image = read_image(write(jpeg(np.full((HEIGHT, WIDTH, 3), rgb, np.uint8))))
    assert image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(image, np.broadcast_to(rgb, image.shape), atol=3)  # chroma is rounded
    grey = read_image(write(jpeg(np.full((HEIGHT, WIDTH), rgb[0], np.uint8))))
    np.testing.assert_allclose(grey, rgb[0], atol=1)


def test_exif_orientation_is_ignored(write):
    turn = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0)
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    path = write(jpeg(image, turn))
    turned = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    assert turned.shape == (WIDTH, HEIGHT, 3)  # the file does ask for it
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)
    assert image_size(path) == (HEIGHT, WIDTH)


def test_bytes_after_the_end_of_a_jpeg_do_not_matter(write):
    content = jpeg(noise(HEIGHT, WIDTH, 3))
    np.testing.assert_array_equal(read_image(write(content + bytes(5000), "a")), read_image(write(content, "b")))


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_image, read_mask, image_size])
def test_a_file_that_is_no_image_says_what_is_wrong_with_it(write, tmp_path, read):
    huge = bytearray(png(np.zeros((1, 1, 1), np.uint8)))
    huge[16:29] = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    cases = {
        tmp_path / "missing.png": "No such file or directory",
        tmp_path: "not a file",
        write(b"", "empty.png"): "the file is empty",
        write(b"just some text\n", "text.png"): "not a JPEG, PNG, BMP or TIFF file, whatever its name says",
        write(
            b"\x89PNG\r\n\x1a\n" + b"IEND" * 9, "rubbish.png"
        ): r"not a readable image .*; remove it or save it again",
        write(bytes(huge), "huge.png"): "its header claims 1600000000 pixels; at most 268435456 are decoded",
    }
    for path, message in cases.items():
        with pytest.raises(UnreadableImageError, match=message) as info:
            read(path)
        assert str(info.value).startswith(f"{path}: ")


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.98])
@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (jpeg, "the file is truncated; copy it again"),
        (png, "the file is truncated; copy it again"),
        (bmp, "the file is truncated; copy it again"),
        (tiff, "not a readable image; remove it or save it again"),
    ],
)
def test_a_truncated_file_is_an_error_and_not_half_grey(write, encode, message, part):
    content = encode(noise(41, 53, 3))
    with pytest.raises(UnreadableImageError, match=message):
        read_image(write(content[: round(part * len(content))]))


def test_the_end_of_a_thumbnail_is_not_the_end_of_a_jpeg(write):
    content = jpeg(noise(41, 53, 3), b"thumbnail" + jpeg(noise(8, 8, 3)))
    assert read_image(write(content)).shape == (41, 53, 3)
    cut = content[: content.rfind(b"\xff\xda") + 200]
    assert b"\xff\xd9" in cut
    with pytest.raises(UnreadableImageError, match="truncated"):
        read_image(write(cut))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("alpha", list(Alpha))
def test_unusual_pixels_are_an_error(write, dtype, channels, alpha):
    path = write(tiff(noise(HEIGHT, WIDTH, channels).astype(dtype)), "a.tif")
    with pytest.raises(PixelFormatError, match=rf"a\.tif: expected uint8 or uint16 pixels, but got {np.dtype(dtype)}"):
        read_image(path, PixelFormat(alpha=alpha))


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_mask_is_where_any_colour_is_above_zero(write, dtype, channels):
    pixels = np.zeros((HEIGHT, WIDTH, channels), dtype)
    colors = channels - (channels in (2, 4))
    pixels[2, 3, colors - 1] = 1
    pixels[5:8, 7:11, :colors] = np.iinfo(dtype).max
    if colors < channels:
        pixels[..., -1] = np.iinfo(dtype).max  # opaque everywhere
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[2, 3] = expected[5:8, 7:11] = True
    mask = read_mask(write(png(pixels)))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)


# --- frames -----------------------------------------------------------------------------------------------------------


def test_an_rgb_frame_is_not_copied():
    frame = noise(HEIGHT, WIDTH, 3)
    assert to_rgb(frame, "rgb") is frame


@pytest.mark.parametrize("bits", [None, 10, 12, 14, 16])
def test_frames_of_every_colour_and_depth(bits):
    dtype, below = (np.uint8, 256) if bits is None else (np.uint16, 2**bits)
    frame = noise(HEIGHT, WIDTH, 3, dtype=dtype, below=below)
    expected = frame if bits is None else eight_bits(frame, bits)
    np.testing.assert_array_equal(to_rgb(frame, "rgb", bits), expected)
    np.testing.assert_array_equal(to_rgb(frame, "bgr", bits), expected[..., ::-1])
    grey = expected[..., 1:2].repeat(3, axis=2)
    np.testing.assert_array_equal(to_rgb(frame[..., 1], "mono", bits), grey)
    np.testing.assert_array_equal(to_rgb(frame[..., 1:2], "mono", bits), grey)
    opacity = np.full((HEIGHT, WIDTH, 1), np.iinfo(dtype).max, dtype)  # beyond the declared bits
    with_alpha = np.concatenate([frame, opacity - noise(HEIGHT, WIDTH, 1)], axis=2)
    np.testing.assert_array_equal(to_rgb(with_alpha, "rgba", bits), expected)
    np.testing.assert_array_equal(to_rgb(with_alpha, "bgra", bits), expected[..., ::-1])


@pytest.mark.parametrize("size", [(20, 30), (31, 17), (40, 60), (90, 50), (100, 130)], ids=str)
@pytest.mark.parametrize("bits", [None, 12])
def test_an_image_is_the_frame_in_rgb_resized(size, bits):
    dtype, below = (np.uint8, 256) if bits is None else (np.uint16, 2**bits)
    frame = noise(80, 120, 4, dtype=dtype, below=below)
    for color, channels in (("rgb", 3), ("bgr", 3), ("rgba", 4), ("bgra", 4), ("mono", 1)):
        for view in (frame[..., :channels], frame[::-1, ::-1, :channels]):
            np.testing.assert_array_equal(to_image(view, color, bits, size), resize(to_rgb(view, color, bits), size))


@pytest.mark.parametrize("bits", range(8, 17))
def test_every_value_of_every_depth_is_scaled_and_rounded(bits):
    values = np.arange(2**bits, dtype=np.uint16)
    expected = np.round(values * (255 / (2**bits - 1)))
    for shape in ((1, -1), (-1, 1), (-1, 4, 1), (-1, 4)):  # what OpenCV does by vectors, and at their ends
        np.testing.assert_array_equal(to_uint8(values.reshape(shape), bits), expected.reshape(shape))


def test_crops_and_mirrored_frames():
    frame = noise(2 * HEIGHT, 2 * WIDTH, 3)
    for view in (frame[3:, 5:-2], frame[:, ::-1], frame[::2, ::3], frame.transpose(1, 0, 2)):
        np.testing.assert_array_equal(to_rgb(view, "bgr"), view[..., ::-1])


@pytest.mark.parametrize(
    ("frame", "color", "bits", "message"),
    [
        (noise(5, 7), "rgb", None, r"expected a frame \(height, width, 3\) for color 'rgb', but got shape \(5, 7\)"),
        (noise(5, 7, 4), "bgr", None, r"for color 'bgr', but got shape \(5, 7, 4\)"),
        (noise(5, 7, 3), "mono", None, r"expected a frame \(height, width\) for color 'mono'"),
        (noise(5), "mono", None, r"for color 'mono', but got shape \(5,\)"),
        (noise(5, 7, 3), "bgra", None, r"expected a frame \(height, width, 4\) for color 'bgra'"),
        (noise(1, 5, 7, 3), "rgb", None, r"got shape \(1, 5, 7, 3\)"),
        (np.zeros((0, 7, 3), np.uint8), "rgb", None, r"got shape \(0, 7, 3\)"),
        (np.zeros((5, 7, 3), np.float32), "rgb", None, "expected uint8 or uint16 pixels, but got float32"),
        (np.zeros((5, 7), np.int64), "mono", 16, "expected uint8 or uint16 pixels, but got int64"),
        (
            np.zeros((5, 7, 3), np.uint16),
            "rgb",
            None,
            r"expected the significant bits \(8 to 16\).*got none; declare bits",
        ),
        (noise(5, 7), "mono", 12, "expected uint16 pixels of the declared 12 bits, but got uint8; set the camera"),
        (noise(5, 7, 4), "bgra", 9, "expected uint16 pixels of the declared 9 bits"),
        (np.full((5, 7, 3), 1024, np.uint16), "rgb", 10, "a pixel of 1024 exceeds the declared 10 bits"),
        ([[0]], "mono", None, "expected a numpy array, but got list"),
    ],
)
def test_a_frame_that_is_not_what_was_declared(frame, color, bits, message):
    with pytest.raises(FrameError, match=message):
        to_rgb(frame, color, bits)


@pytest.mark.parametrize("bits", [-1, 0, 7, 17, 99])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bits_that_no_frame_has(dtype, bits):
    with pytest.raises(InputError, match=f"bits: expected 8 to 16, but got {bits}"):
        to_rgb(np.zeros((5, 7, 3), dtype), "rgb", bits)


def test_eight_bits_may_be_declared_of_a_uint8_frame():
    frame = noise(5, 7, 3)
    assert to_rgb(frame, "rgb", 8) is frame


def test_eight_bit_files_may_lie_among_deeper_ones(write):
    """``--bits`` is for a folder: files of eight bits have eight whatever it says."""
    pixels = noise(HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(read_image(write(png(pixels)), PixelFormat(12)), pixels)


@pytest.mark.parametrize("color", ["RGB", "argb", "", None])
def test_an_unknown_colour(color):
    with pytest.raises(ColorError, match=r"unknown color .*; expected one of rgb, bgr, mono, rgba, bgra"):
        to_rgb(noise(5, 7, 3), color)


# --- resizing ---------------------------------------------------------------------------------------------------------


def area_matrix(old: int, new: int) -> NDArray[np.float64]:
    """(new, old): the part of old pixel j that new pixel i covers, over the whole of what it covers."""
    edges = np.arange(new + 1) * (old / new)
    start, stop = np.maximum(edges[:-1, None], np.arange(old)), np.minimum(edges[1:, None], np.arange(old) + 1)
    return np.clip(stop - start, 0, None) * (new / old)


def linear_matrix(old: int, new: int) -> NDArray[np.float64]:
    """(new, old): linear interpolation between pixel centres, the outermost pixels continued."""
    at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    return np.clip(1 - np.abs(at[:, None] - np.arange(old)), 0, None)


def one_axis(old: int, new: int) -> NDArray[np.float64]:
    return area_matrix(old, new) if new < old else linear_matrix(old, new)


lengths = st.integers(1, 41)
sizes = st.tuples(lengths, lengths)


@given(sizes, sizes, st.integers(0, 2**32 - 1))
@settings(max_examples=150)
def test_resize_averages_areas_where_it_shrinks_and_interpolates_where_it_grows(old, new, seed):
    rng = np.random.default_rng(seed)
    image = rng.random((*old, 3), dtype=np.float32)
    rows, cols = (one_axis(*axis) for axis in zip(old, new, strict=True))
    expected = np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), cols)
    resized = resize(image, new)
    assert (resized.shape, resized.dtype) == ((*new, 3), np.float32)
    np.testing.assert_allclose(resized, expected, atol=2e-5)  # OpenCV's coefficients are float32
    pixels = rng.integers(0, 256, old, np.uint8)
    # Rounded once where all axes shrink (or grow, with weights of 1/2048), twice where one shrinks and the other grows.
    np.testing.assert_allclose(resize(pixels, new), rows @ pixels @ cols.T, atol=1.3)


@pytest.mark.parametrize(("down", "across"), [(1, 2), (2, 2), (3, 3), (4, 2), (5, 7)])
def test_whole_factors_average_blocks_by_hand(down, across):
    image = noise(down * 6, across * 4, 3)
    blocks = image.reshape(6, down, 4, across, 3).mean(axis=(1, 3))
    assert np.abs(resize(image, (6, 4)) - blocks).max() <= 0.5


def test_the_right_size_is_the_same_array():
    image, mask, anomaly_map = noise(5, 7, 3), np.zeros((5, 7), bool), np.zeros((5, 7), np.float32)
    assert resize(image, (5, 7)) is image
    assert resize_mask(mask, (5, 7)) is cover_mask(mask, (5, 7)) is mask
    assert resize_map(anomaly_map, (5, 7)) is anomaly_map


@given(sizes, sizes, st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_masks_take_the_nearest_pixel(old, new, seed):
    mask = np.random.default_rng(seed).random(old) < 0.5
    resized = resize_mask(mask, new)
    assert (resized.shape, resized.dtype) == (new, bool)
    # centre of new pixel i: (i + 1/2) old / new, in whole numbers; on an edge both neighbours are as near
    centres = [(2 * np.arange(n) + 1) * o for o, n in zip(old, new, strict=True)]
    rows, cols = (centre // (2 * n) for centre, n in zip(centres, new, strict=True))
    clear = np.ix_(*(centre % (2 * n) > 0 for centre, n in zip(centres, new, strict=True)))
    np.testing.assert_array_equal(resized[clear], mask[np.ix_(rows, cols)][clear])


@given(sizes, sizes, st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_what_a_mask_covers_is_covered_at_any_size(old, new, seed):
    mask = np.random.default_rng(seed).random(old) < 0.1
    smaller = tuple(map(min, old, new))
    # old pixels that lie in new pixel i: from i * old / new, rounded down, to (i + 1) * old / new, rounded up
    rows, cols = (
        [slice(i * o // n, -(-(i + 1) * o // n)) for i in range(n)] for o, n in zip(old, smaller, strict=True)
    )
    shrunk = np.array([[mask[row, col].any() for col in cols] for row in rows])
    np.testing.assert_array_equal(cover_mask(mask, new), resize_mask(shrunk, new))


def test_one_pixel_among_a_million_is_covered():
    mask = np.zeros((2000, 3000), bool)
    mask[1234, 2345] = True
    assert np.argwhere(cover_mask(mask, (2, 3))).tolist() == [[1, 2]]


@given(sizes, sizes, st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_maps_are_interpolated_linearly(old, new, seed):
    anomaly_map = np.random.default_rng(seed).random(old, dtype=np.float32)
    rows, cols = (linear_matrix(*axis) for axis in zip(old, new, strict=True))
    np.testing.assert_allclose(resize_map(anomaly_map, new), rows @ anomaly_map @ cols.T, atol=2e-5)


# --- names and writing ------------------------------------------------------------------------------------------------


@given(st.permutations(["B2.png", "a.png", "A.png", "b1.png", "b02.png", "b2.png", "b10.png", "b10a.png", "10.png"]))
def test_numbers_sort_by_value_and_the_order_never_depends_on_the_disk(names):
    order = ["10.png", "A.png", "a.png", "b1.png", "B2.png", "b02.png", "b2.png", "b10.png", "b10a.png"]
    assert [str(path) for path in natural_sort(map(Path, names))] == order


def test_image_files_are_those_of_the_folder_itself(tmp_path):
    for name in ("img10.PNG", "img2.jpeg", "img1.Tif", "notes.txt", ".hidden", "._img3.png", "sub/img0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in image_files(tmp_path)] == ["img1.Tif", "img2.jpeg", "img10.PNG"]
    with pytest.raises(DataNotFoundError, match=r"folder .*nowhere not found"):
        image_files(tmp_path / "nowhere")


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)])
def test_what_is_written_is_read_again(tmp_path, shape):
    pixels = noise(*shape)
    write_png(tmp_path / "new" / "a.png", pixels)
    expected = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), expected)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
