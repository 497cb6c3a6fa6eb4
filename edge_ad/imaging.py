"""Files and frames to uint8 RGB: decoding, declared conversions, and the one resize. numpy and OpenCV.

What is in a pixel is declared, never guessed from values: a dark image stays dark.

Symbols: H, W image size. Sizes are ``(height, width)``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from stat import S_ISREG
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad import atomic
from edge_ad.errors import (
    ColorError,
    DataNotFoundError,
    FrameError,
    ImageTooLargeError,
    InputError,
    PixelFormatError,
    UnreadableImageError,
)
from edge_ad.image_header import BIG_TIFF, claimed_pixels, jpeg_scans, stored_size
from edge_ad.tiling import Size

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")


MAX_PIXELS = 2**28  # 16384 x 16384; 0.8 GB as RGB
MAX_FILE_BYTES = 2**31 + 2**20  # as many pixels of four 16-bit channels, uncompressed
MAX_SCANNED_PIXELS = 2**32  # of a JPEG in several passes: some ten seconds


class Color(StrEnum):
    """Channel order of a frame. An alpha channel is dropped."""

    RGB = "rgb"
    BGR = "bgr"
    MONO = "mono"
    RGBA = "rgba"
    BGRA = "bgra"


_CHANNELS = {Color.RGB: 3, Color.BGR: 3, Color.MONO: 1, Color.RGBA: 4, Color.BGRA: 4}
_TO_RGB = {
    Color.BGR: cv2.COLOR_BGR2RGB,
    Color.MONO: cv2.COLOR_GRAY2RGB,
    Color.RGBA: cv2.COLOR_RGBA2RGB,
    Color.BGRA: cv2.COLOR_BGRA2RGB,
}


class Alpha(StrEnum):
    """What to do with an alpha channel."""

    DROP = "drop"
    BLACK = "black"  # composite on black
    WHITE = "white"  # composite on white


@dataclass(frozen=True)
class PixelFormat:
    """How image files become uint8 RGB.

    Args:
        bits: significant bits of 16-bit files (10 or 12 for many cameras); None: all 16. Eight-bit files have eight.
        alpha: of files that have an alpha channel. Opacity fills its 8 or 16 bits, whatever ``bits`` says of colours.
    """

    bits: int | None = None
    alpha: Alpha = Alpha.DROP


def read_image(path: Path, pixel_format: PixelFormat = PixelFormat()) -> NDArray[np.uint8]:
    """A JPEG, PNG, BMP or TIFF file as uint8 (H, W, 3) RGB.

    Grey is repeated over three channels; 16 bits scale by 255 / (2^bits - 1), rounded. EXIF orientation is ignored:
    pixels come as they are stored.

    Raises:
        UnreadableImageError: missing, empty, truncated, or no image.
        ImageTooLargeError: its header claims more than `MAX_PIXELS`; nothing is decoded.
        PixelFormatError: float or other unusual pixels, values beyond the declared bits, or a transparent 8-bit TIFF.
    """
    path = Path(path)
    return decode_image(_read(path), path, pixel_format)


def decode_image(content: bytes, path: Path, pixel_format: PixelFormat = PixelFormat()) -> NDArray[np.uint8]:
    """`read_image` of a file's ``content``; ``path`` is for messages alone. Raises as there."""
    decoded = _decode(content, path)
    colors, opacity = (decoded[:, :, :3], decoded[:, :, 3]) if _has_alpha(decoded) else (decoded, None)
    try:
        eight = to_uint8(colors, (pixel_format.bits or 16) if colors.dtype == np.uint16 else None)
    except FrameError as error:
        raise PixelFormatError(f"{path}: {error}") from error
    if opacity is not None and pixel_format.alpha != Alpha.DROP:
        eight = _composite(eight, opacity, 255 if pixel_format.alpha == Alpha.WHITE else 0)
    return _convert(eight, cv2.COLOR_GRAY2RGB if eight.ndim == 2 else cv2.COLOR_BGR2RGB)


def image_size(path: Path) -> Size:
    """(H, W) of an image file, decoded only where its header does not tell. Raises as `read_image`."""
    path = Path(path)
    content = _read(path)
    _check_whole(path, content)
    _check_claims(path, content)
    height, width = stored_size(content)
    if not (height and width):
        height, width = _decode(content, path).shape[:2]
    return height, width


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A ground-truth mask as bool (H, W): any channel but alpha above 0. Raises as `read_image`."""
    return read_mask_values(path) > 0


def read_mask_values(path: Path) -> NDArray[Any]:
    """A ground-truth mask as it is stored, (H, W): of several channels but alpha the largest. Raises as `read_mask`."""
    path = Path(path)
    decoded = _decode(_read(path), path)
    return decoded if decoded.ndim == 2 else decoded[:, :, :3].max(2)


def to_rgb(frame: NDArray[Any], color: Color | str, bits: int | None = None) -> NDArray[np.uint8]:
    """A camera frame as uint8 (H, W, 3) RGB; the frame itself where it is that already.

    Args:
        frame: uint8 or uint16, (H, W, 3); with alpha (H, W, 4); for mono (H, W) or (H, W, 1).
        color: its channel order.
        bits: significant bits of a uint16 frame (10, 12, 14, 16). Of its colours: alpha is not looked at. None, or 8,
            for a uint8 frame.

    Raises:
        ColorError: unknown colour order.
        FrameError: rank, dtype, channels or bits do not fit.
        InputError: ``bits`` are not 8 to 16.
    """
    return _rgb(*_eight_bits(frame, color, bits))


def to_image(frame: NDArray[Any], color: Color | str, bits: int | None, size: Size) -> NDArray[np.uint8]:
    """A camera frame as uint8 (H, W, 3) RGB at ``size``: `to_rgb` and `resize`, to the bit, and errors as there.

    BGR, what cameras mostly give, becomes RGB where there are fewer pixels.
    """
    eight, order = _eight_bits(frame, color, bits)
    if order == Color.BGR and eight[:, :, 0].size > size[0] * size[1]:
        return _rgb(resize(eight, size), order)
    return resize(_rgb(eight, order), size)


def _eight_bits(frame: NDArray[Any], color: Color | str, bits: int | None) -> tuple[NDArray[np.uint8], Color]:
    """See `to_rgb`: the frame in eight bits, and the order of its channels."""
    if color not in list(Color):
        raise ColorError(f"unknown color {color!r}; expected one of {', '.join(Color)}")
    if not isinstance(frame, np.ndarray):
        raise FrameError(f"expected a numpy array, but got {type(frame).__name__}")
    color = Color(color)
    channels = _CHANNELS[color]
    fits = frame.shape[2:] == (channels,) or (channels == 1 and frame.ndim == 2)
    if not fits or 0 in frame.shape:
        shape = "(height, width)" if channels == 1 else f"(height, width, {channels})"
        raise FrameError(f"expected a frame {shape} for color {str(color)!r}, but got shape {frame.shape}")
    if channels == 4 and frame.dtype != np.uint8:  # opacity fills its 16 bits, whatever ``bits`` says of colours
        frame, color = frame[:, :, :3], Color(color[:3])
    return to_uint8(frame, bits), color


def check_bits(bits: int | None) -> None:
    """Raise `InputError` where ``bits`` are declared and are not 8 to 16."""
    if bits is not None and bits not in range(8, 17):
        raise InputError(f"bits: expected 8 to 16, but got {bits}")


def to_uint8(pixels: NDArray[Any], bits: int | None) -> NDArray[np.uint8]:
    """``pixels`` in eight bits: uint8 as they are, uint16 of ``bits`` significant bits scaled and rounded.

    Raises:
        FrameError: another dtype, uint16 without ``bits``, uint8 with more than 8, or values beyond them.
        InputError: ``bits`` are not 8 to 16.
    """
    check_bits(bits)
    if pixels.dtype == np.uint8:
        if bits is not None and bits > 8:
            raise FrameError(
                f"expected uint16 pixels of the declared {bits} bits, but got uint8; set the camera to give them, or "
                "declare no bits"
            )
        return pixels
    if pixels.dtype != np.uint16:
        raise FrameError(f"expected uint8 or uint16 pixels, but got {pixels.dtype}; convert them first")
    if bits is None:
        raise FrameError("expected the significant bits (8 to 16) of uint16 pixels, but got none; declare bits")
    largest = 2**bits - 1
    if int(pixels.max(initial=0)) > largest:
        raise FrameError(f"a pixel of {int(pixels.max())} exceeds the declared {bits} bits; declare more bits")
    eight: NDArray[Any] = cv2.convertScaleAbs(pixels, alpha=255 / largest)
    return eight.reshape(pixels.shape)  # OpenCV drops a single channel


def resize(image: NDArray[Any], size: Size) -> NDArray[Any]:
    """``image`` (H, W) or (H, W, C) at ``size``: axes that shrink by area averaging, then axes that grow linearly.

    The one resize of this project: training, calibration and inference see the same pixels. The same array where the
    size is right already.
    """
    height, width = image.shape[:2]
    smaller = (min(height, size[0]), min(width, size[1]))
    if smaller != (height, width):
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != size:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return image


def resize_mask(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """``mask`` bool (H, W) at ``size``, by the nearest pixel."""
    if mask.shape == size:
        return mask
    return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0


def cover_mask(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """``mask`` bool (H, W) at ``size``: nothing of it vanishes, as small things do by the nearest pixel.

    Along axes that shrink a pixel is True where any of its area is; axes then grow by the nearest pixel.
    """
    smaller = (min(mask.shape[0], size[0]), min(mask.shape[1], size[1]))
    if smaller != mask.shape:
        # As float32: of eight bits one pixel among a thousand would be rounded away
        mask = cv2.resize(mask.astype(np.float32), smaller[::-1], interpolation=cv2.INTER_AREA) > 0
    return resize_mask(mask, size)


def resize_map(anomaly_map: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """``anomaly_map`` float32 (H, W) at ``size``, linearly."""
    if anomaly_map.shape == size:
        return anomaly_map
    resized: NDArray[Any] = cv2.resize(anomaly_map, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def image_files(folder: Path) -> list[Path]:
    """The image files directly in ``folder``, in natural order (``img2`` before ``img10``); hidden ones are left out.

    Raises:
        DataNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataNotFoundError(f"folder {folder} not found")
    return natural_sort(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def natural_sort(paths: Iterable[Path]) -> list[Path]:
    """Paths by name, numbers in them by value, letters whatever their case."""
    return sorted(paths, key=lambda path: ([_part(part) for part in re.split(r"(\d+)", str(path))], str(path)))


def _part(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (0, text.lower())


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of uint8 (H, W, 3) RGB or (H, W) grey."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    _, encoded = cv2.imencode(".png", bgr)
    return encoded.tobytes()


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write uint8 (H, W, 3) RGB or (H, W) grey as PNG, atomically. Raises `OutputWriteError`."""
    atomic.write_bytes(path, encode_png(image))


def _decode(content: bytes, path: Path) -> NDArray[Any]:
    _check_whole(path, content)
    _check_claims(path, content)
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # too many pixels
        raise UnreadableImageError(f"{path}: cannot be decoded ({error.err}); remove it or save it again") from error
    if decoded is None:
        raise UnreadableImageError(f"{path}: not a readable image; remove it or save it again")
    if _is_tiff(content) and decoded.dtype == np.uint8 and _has_alpha(decoded) and decoded[:, :, 3].min() < 255:
        # libtiff has multiplied the colours by the opacity, or not: OpenCV does not tell.
        raise PixelFormatError(f"{path}: an 8-bit TIFF with transparent pixels is ambiguous; save it as PNG")
    return decoded


def _read(path: Path) -> bytes:
    try:
        about = path.stat()
        if not S_ISREG(about.st_mode):  # a pipe may never give anything, a device never end
            raise UnreadableImageError(f"{path}: not a file")
        if about.st_size > MAX_FILE_BYTES:
            raise UnreadableImageError(f"{path}: {about.st_size} bytes; an image file has at most {MAX_FILE_BYTES}")
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror or error}") from error
    if not content:
        raise UnreadableImageError(f"{path}: the file is empty")
    return content


def _check_claims(path: Path, content: bytes) -> None:
    """Refuse by its header what would take gigabytes, or minutes, to decode."""
    try:
        pixels = claimed_pixels(content)
    except ValueError as error:
        raise UnreadableImageError(f"{path}: not a readable image ({error}); remove it or save it again") from error
    if pixels > MAX_PIXELS:
        raise ImageTooLargeError(f"{path}: its header claims {pixels} pixels; at most {MAX_PIXELS} are decoded")
    if (scans := jpeg_scans(content)) * pixels > MAX_SCANNED_PIXELS:
        raise ImageTooLargeError(f"{path}: a JPEG of {pixels} pixels in {scans} passes; save it again as a plain one")


def _check_whole(path: Path, content: bytes) -> None:
    """OpenCV fills the missing part of a truncated JPEG or PNG with grey and says nothing: look for the end marks."""
    if content.startswith(b"\xff\xd8"):
        # The end of the image, after the start of its last scan: the end of an embedded thumbnail lies before.
        whole = content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda")
    elif content.startswith(b"\x89PNG\r\n\x1a\n"):
        whole = b"IEND" in content[-1024:]
    elif content.startswith(b"BM"):
        whole = len(content) >= 14 and len(content) >= struct.unpack_from("<I", content, 2)[0]
    elif _is_tiff(content):
        whole = True  # strips lie anywhere in a TIFF; its decoder fails where one is missing
    else:
        kind = "a BigTIFF, which is not read" if content.startswith(BIG_TIFF) else "not a JPEG, PNG, BMP or TIFF file"
        raise UnreadableImageError(f"{path}: {kind}, whatever its name says; save it as one of them")
    if not whole:
        raise UnreadableImageError(f"{path}: the file is truncated; copy it again")


def _rgb(eight: NDArray[np.uint8], order: Color) -> NDArray[np.uint8]:
    return eight if order == Color.RGB else _convert(eight, _TO_RGB[order])


def _convert(pixels: NDArray[np.uint8], code: int) -> NDArray[np.uint8]:
    converted: NDArray[Any] = cv2.cvtColor(pixels, code)
    return converted


def _is_tiff(content: bytes) -> bool:
    return content[:4] in (b"II*\0", b"MM\0*")


def _has_alpha(decoded: NDArray[Any]) -> bool:
    return decoded.ndim == 3 and decoded.shape[2] == 4


def _composite(colors: NDArray[np.uint8], opacity: NDArray[Any], ground: int) -> NDArray[np.uint8]:
    """``colors`` (H, W, 3) over a uniform ``ground``, by ``opacity`` (H, W) of full range."""
    weight = opacity[:, :, None] / np.iinfo(opacity.dtype).max
    blended: NDArray[np.uint8] = np.round(colors * weight + ground * (1 - weight)).astype(np.uint8)
    return blended
