"""Sizes by the header, against what OpenCV wrote; bombs, each made by hand."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ad import imaging
from edge_ad.errors import ImageTooLargeError, InputError, UnreadableImageError
from edge_ad.image_header import claimed_pixels, jpeg_scans, stored_size
from edge_ad.imaging import read_image

HEIGHT, WIDTH = 23, 31


def encoded(suffix: str, height: int = HEIGHT, width: int = WIDTH, *options: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_what_opencv_wrote(suffix):
    assert claimed_pixels(encoded(suffix)) == HEIGHT * WIDTH


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_the_size_it_is_decoded_to(suffix):
    assert stored_size(encoded(suffix)) == (HEIGHT, WIDTH)


def test_rows_of_a_bmp_from_top_to_bottom():
    assert stored_size(patched(".bmp", 7, 9)) == (7, 9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_as_opencv_turns_it(orientation):
    content = bytearray(encoded(".tif"))
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    entries = [bytes(content[at : at + 12]) for at in range(directory + 2, directory + 2 + 12 * count, 12)]
    entries = sorted([*entries, struct.pack("<HHII", 274, 3, 1, orientation)], key=lambda entry: entry[1::-1])
    content += bytes(len(content) % 2)
    struct.pack_into("<I", content, 4, len(content))
    content += struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    decoded = cv2.imdecode(np.frombuffer(bytes(content), np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored_size(bytes(content)) == decoded.shape[:2]
    assert (decoded.shape[0] == WIDTH) == (orientation > 4)


def test_a_size_that_only_decoding_tells():
    assert stored_size(patched(".jpg", 0, 9)) == (0, 9)  # the number of rows follows the first scan
    assert stored_size(patched(".tif", 0, 9)) == (0, 9)


def test_passes_of_a_jpeg():
    assert jpeg_scans(encoded(".jpg")) == 1
    assert jpeg_scans(encoded(".jpg", 23, 31, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)) == 10  # libjpeg's own script
    assert jpeg_scans(encoded(".png")) == 0


def png_bomb(width: int, height: int) -> bytes:
    """A valid grey PNG, all black: about a thousandth of its pixels in bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    rows = b"".join(packer.compress(row) for _ in range(min(height, 99))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def patched(suffix: str, height: int, width: int) -> bytes:
    """A small image whose header claims another size."""
    content = bytearray(encoded(suffix))
    if suffix == ".jpg":
        at = content.index(b"\xff\xc0")
        struct.pack_into(">HH", content, at + 5, height, width)
    elif suffix == ".bmp":
        struct.pack_into("<ii", content, 18, width, -height)
    else:
        (directory,) = struct.unpack_from("<I", content, 4)
        for entry in range(directory + 2, directory + 2 + 12 * content[directory], 12):
            tag = struct.unpack_from("<H", content, entry)[0]
            if tag in (256, 257):
                struct.pack_into("<HHII", content, entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(content)


BOMBS = {
    "png": png_bomb(2**16, 2**15),
    "png, widest": png_bomb(2**20, 2**20),
    "jpg": patched(".jpg", 65500, 65500),
    "bmp": patched(".bmp", 2**20, 2**20),
    "tif": patched(".tif", 2**31, 2**31),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(tmp_path, name):
    path = tmp_path / "bomb.bin"
    path.write_bytes(BOMBS[name])
    tracemalloc.start()
    with pytest.raises(ImageTooLargeError, match=r"bomb.bin: its header claims \d+ pixels; at most 268435456"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 20 * len(BOMBS[name]) + 2**20
    tracemalloc.stop()


def test_a_tile_of_a_tiff_may_be_the_bomb(tmp_path):
    tags = [(256, 4, 1, 64), (257, 4, 1, 64), (322, 4, 1, 2**16), (323, 4, 1, 2**16)]
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    assert claimed_pixels(content) == 2**32
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageTooLargeError):
        read_image(tmp_path / "a.tif")


def test_a_jpeg_of_many_passes(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encoded(".jpg", 23, 31, cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    read_image(tmp_path / "a.jpg")
    monkeypatch.setattr(imaging, "MAX_SCANNED_PIXELS", 10 * HEIGHT * WIDTH - 1)
    with pytest.raises(ImageTooLargeError, match="a JPEG of 713 pixels in 10 passes"):
        read_image(tmp_path / "a.jpg")


def test_what_is_no_file_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(UnreadableImageError, match=f"{name}: not a file"):
            read_image(tmp_path / name)
    (tmp_path / "c.png").write_bytes(encoded(".png"))
    monkeypatch.setattr(imaging, "MAX_FILE_BYTES", 100)
    with pytest.raises(UnreadableImageError, match="bytes; an image file has at most 100"):
        read_image(tmp_path / "c.png")


@given(st.data())
@settings(max_examples=150)
def test_any_bytes_are_an_image_or_a_typed_error(tmp_path_factory, data):
    """A valid start, then pieces of it changed, cut or repeated."""
    content = bytearray(encoded(data.draw(st.sampled_from([".png", ".jpg", ".bmp", ".tif"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content) - 1, data.draw(st.sampled_from([64, 4096])))))
        piece = data.draw(st.binary(max_size=8))
        content[at : at + data.draw(st.integers(0, 8))] = piece
        content = content or bytearray(1)
    path = tmp_path_factory.getbasetemp() / f"fuzz-{threading.get_ident()}.bin"
    path.write_bytes(content)
    try:
        image = read_image(path)
    except InputError:
        return
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM", b"II*\0", b"MM\0*"]))
def test_any_header_has_a_size_or_none(content, start):
    with contextlib.suppress(ValueError):
        assert claimed_pixels(start + content) >= 0
