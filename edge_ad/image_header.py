"""How many pixels an encoded image says it has, read from its header alone: what decoding it would allocate.

A few kilobytes of PNG can hold gigabytes of black. The header tells before a decoder believes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PNG, JPEG, BMP, TIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM", (b"II*\0", b"MM\0*")
BIG_TIFF = (b"II+\0", b"MM\0+")

_JPEG_FRAMES = {0xC0 + n for n in range(16)} - {0xC4, 0xC8, 0xCC}  # start of frame, of any coding
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_WIDTH, _HEIGHT, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 274, 322, 323  # TIFF tags
_ON_ITS_SIDE = range(5, 9)  # orientations
_SHORT, _LONG = 3, 4  # TIFF types


def claimed_pixels(content: bytes) -> int:
    """Pixels of the image, or of its largest tile where that is larger; 0 where the header names no size.

    >>> claimed_pixels(PNG + b"\\0\\0\\0\\rIHDR" + b"\\0\\0\\1\\0" + b"\\0\\0\\0\\2")
    512

    Raises:
        ValueError: the header is cut off, or of another format than PNG, JPEG, BMP and TIFF.
    """
    pixels = _product(*stored_size(content))
    if content.startswith(TIFF):
        tags = _tiff_tags(content)
        pixels = max(pixels, _product(tags.get(_TILE_HEIGHT, 0), tags.get(_TILE_WIDTH, 0)))
    return pixels


def stored_size(content: bytes) -> tuple[int, int]:
    """(height, width) that an image is decoded to; 0 for what its header does not name.

    OpenCV turns a TIFF as its orientation asks, and no other format as we read them.

    >>> stored_size(PNG + b"\\0\\0\\0\\rIHDR" + b"\\0\\0\\1\\0" + b"\\0\\0\\0\\2")
    (2, 256)

    Raises:
        ValueError: see `claimed_pixels`.
    """
    try:
        if content.startswith(PNG):
            name, width, height = struct.unpack_from(">4sII", content, 12)
            if name != b"IHDR":
                raise ValueError("a PNG that does not begin with its header")
            return height, width
        if content.startswith(JPEG):
            return max(_jpeg_sizes(content), key=lambda size: _product(*size), default=(0, 0))
        if content.startswith(BMP):
            height, width = _bmp_size(content)
            return abs(height), abs(width)
        if content.startswith(TIFF):
            tags = _tiff_tags(content)
            height, width = tags.get(_HEIGHT, 0), tags.get(_WIDTH, 0)
            return (width, height) if tags.get(_ORIENTATION, 0) in _ON_ITS_SIDE else (height, width)
    except (struct.error, IndexError) as error:
        raise ValueError("its header is cut off") from error
    raise ValueError("neither PNG, JPEG, BMP nor TIFF")


def jpeg_scans(content: bytes) -> int:
    """Passes over all pixels that a JPEG asks for, 0 for other formats; a few of those counted may be of thumbnails."""
    # In coded data 0xFF is followed by 0: the marker is found by its two bytes
    return content.count(b"\xff\xda") if content.startswith(JPEG) else 0


def _product(height: int, width: int) -> int:
    return height * width


def _jpeg_sizes(content: bytes) -> Iterator[tuple[int, int]]:
    """(height, width) of every frame header before the first scan."""
    at = 2
    while at < len(content):
        if content[at] != 0xFF:
            raise IndexError(f"no marker at byte {at}")
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        elif marker in (0xD9, 0xDA):  # end, or pixels
            return
        else:
            (length,) = struct.unpack_from(">H", content, at + 2)
            if marker in _JPEG_FRAMES:
                yield struct.unpack_from(">HH", content, at + 5)
            at += 2 + length


def _bmp_size(content: bytes) -> tuple[int, int]:
    """(height, width); height below 0 where rows run from top to bottom."""
    (header_bytes,) = struct.unpack_from("<I", content, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", content, 18)
    return height, width


def _tiff_tags(content: bytes) -> dict[int, int]:
    """Whole-numbered tags of the first image; of those that come twice the larger value."""
    order = "<" if content.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, at)
    tags: dict[int, int] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", content, entry)
        if kind in (_SHORT, _LONG):
            (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), content, entry + 8)
            tags[tag] = max(value, tags.get(tag, 0))
    return tags
