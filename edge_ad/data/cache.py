"""Decoded images, once: a memory-mapped uint8 array per set of images and size, under the user's cache folder.

The file's name is a digest of the images' content, in order, the size and the pixel format: nothing in it can be stale.
Training tiles are cut from it, and the operating system keeps what is used in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_ad import atomic
from edge_ad.bundle.files import sha256_file
from edge_ad.data.layouts import Sample
from edge_ad.errors import EmptyDataError, MixedSizesError, OutputWriteError, UnreadableImageError
from edge_ad.imaging import PixelFormat, image_size, read_image, resize
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import Size, format_size

_VERSION = 1  # of decoding and resizing; a change makes new files


@dataclass(frozen=True)
class CachedImages:
    """Images uint8 (N, H, W, 3) RGB, read-only, with the SHA-256 of each file."""

    images: NDArray[np.uint8]
    digests: tuple[str, ...]


def digest_of(digests: Sequence[str]) -> str:
    """One SHA-256 over those of images, in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def open_cache(
    samples: Sequence[Sample],
    size: Size | None,
    pixel_format: PixelFormat = PixelFormat(),  # noqa: B008 - frozen
    *,
    cache_dir: Path | None = None,
    progress: Progress = no_progress,
) -> CachedImages:
    """Decode and resize every image, or find that it was done before.

    Args:
        samples: the images, in this order.
        size: (H, W) to resize to; None: their own common size.
        pixel_format: how files become uint8 RGB.
        cache_dir: where the arrays are kept; `EDGE_AD_CACHE`, or the user's cache folder where None.

    Raises:
        EmptyDataError: no image.
        UnreadableImageError, PixelFormatError: see `read_image`; nothing is cached then.
        MixedSizesError: ``size`` is None and the images differ.
        OutputWriteError: the cache cannot be written.
    """
    if not samples:
        raise EmptyDataError("no image to read")
    paths = [sample.path for sample in samples]
    with ThreadPoolExecutor() as pool:
        digests = tuple(pool.map(_digest, paths))
    chosen = size or common_size(paths)
    name = hashlib.sha256(repr((_VERSION, digests, chosen, pixel_format)).encode()).hexdigest()
    path = (cache_dir or default_cache_dir()) / "images" / f"{name}.npy"
    shape = (len(paths), *chosen, 3)
    if (cached := _map(path, shape)) is None:
        _write(path, shape, lambda index: resize(read_image(paths[index], pixel_format), chosen), progress)
        cached = _map(path, shape)
        assert cached is not None  # written just above
    return CachedImages(cached, digests)


def image_sizes(paths: Sequence[Path]) -> list[Size]:
    """`image_size` of each, several at a time."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(image_size, paths))


def common_size(paths: Sequence[Path]) -> Size:
    """(H, W) of images that are all of one size. Raises `MixedSizesError`, naming two that differ."""
    first: tuple[Path, Size] | None = None
    for path, size in zip(paths, image_sizes(paths), strict=True):
        first = first or (path, size)
        if size != first[1]:
            raise MixedSizesError(
                f"{first[0]} is {format_size(first[1])}, but {path} is {format_size(size)}; "
                "--image-size native needs one common size: name a size instead"
            )
    if first is None:
        raise EmptyDataError("no image to read")
    return first[1]


def default_cache_dir() -> Path:
    """`EDGE_AD_CACHE`, or the user's cache folder."""
    if chosen := os.environ.get("EDGE_AD_CACHE"):
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("edge-ad", appauthor=False)


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror or error}") from error


def _map(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The cached array, or None where there is none of this shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):  # not there, empty, or cut short by somebody else
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _write(path: Path, shape: tuple[int, ...], image: Callable[[int], NDArray[np.uint8]], progress: Progress) -> None:
    """Fill the array ``path`` with ``image(index)``, several at a time."""

    def write(temporary: Path) -> None:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        _reserve(temporary)

        def fill(index: int) -> None:
            array[index] = image(index)

        with ThreadPoolExecutor() as pool:
            for done, _ in enumerate(pool.map(fill, range(len(array))), 1):
                progress(done, len(array), "decoding images")
        array.flush()

    atomic.remove_leftovers(path.parent)  # an interrupted call's are as large as the array
    try:
        atomic.write_file(path, write)
    except OutputWriteError as error:
        raise OutputWriteError(f"{error} with EDGE_AD_CACHE") from error


def _reserve(path: Path) -> None:
    """Take the file's space now: writing through a map to a full disk would kill the process instead of raising."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
