from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from edge_ad.data import cache
from edge_ad.data.cache import common_size, default_cache_dir, digest_of, open_cache
from edge_ad.data.layouts import Sample
from edge_ad.errors import EmptyDataError, MixedSizesError, OutputWriteError, PixelFormatError, UnreadableImageError
from edge_ad.imaging import Alpha, PixelFormat, read_image, resize, write_png
from edge_ad.tiling import TileGrid

SIZE = (13, 17)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    paths = [tmp_path / "data" / f"{i}.png" for i in range(5)]
    for seed, path in enumerate(paths):
        write_png(path, np.random.default_rng(seed).integers(0, 256, (29, 31, 3), np.uint8))
    return [Sample(path, 0) for path in paths]


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_AD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that was decoded, in no order."""
    paths = []

    def spy(path: Path, pixel_format: PixelFormat) -> np.ndarray:
        paths.append(path)
        return read_image(path, pixel_format)

    monkeypatch.setattr(cache, "read_image", spy)
    return paths


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_images_are_decoded_and_resized_in_order(samples):
    images = open_cache(samples, SIZE).images
    assert (images.shape, images.dtype) == ((5, *SIZE, 3), np.uint8)
    for image, sample in zip(images, samples, strict=True):
        np.testing.assert_array_equal(image, resize(read_image(sample.path), SIZE))


def test_images_are_decoded_once(samples, decoded, cache_dir):
    first = open_cache(samples, SIZE)
    assert sorted(decoded) == [sample.path for sample in samples]
    second = open_cache(samples, SIZE)
    assert len(decoded) == 5
    np.testing.assert_array_equal(first.images, second.images)
    assert first.digests == second.digests
    assert len(files(cache_dir)) == 1


def test_the_array_is_mapped_and_tiles_are_views_on_it(samples):
    images = open_cache(samples, SIZE).images
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    for tile in TileGrid(SIZE, (7, 9), (6, 8)).crop(images[1]):
        assert np.shares_memory(tile, images)


def test_digests_are_those_of_the_files(samples):
    cached = open_cache(samples, SIZE)
    assert cached.digests == tuple(hashlib.sha256(sample.path.read_bytes()).hexdigest() for sample in samples)
    assert digest_of(cached.digests) != digest_of(open_cache(samples[::-1], SIZE).digests)


def test_the_same_content_elsewhere_is_the_same_array(samples, decoded, tmp_path):
    open_cache(samples, SIZE)
    moved = [Sample(sample.path.rename(tmp_path / f"moved{i}.png"), 1) for i, sample in enumerate(samples)]
    open_cache(moved, SIZE)
    assert len(decoded) == 5


def test_other_content_size_pixel_format_or_order_is_another_array(samples, decoded, cache_dir):
    open_cache(samples, SIZE)
    for count, arguments in enumerate(
        [
            (samples, (17, 13)),
            (samples, SIZE, PixelFormat(bits=12)),
            (samples, SIZE, PixelFormat(alpha=Alpha.WHITE)),
            (samples[::-1], SIZE),
            (samples[:4], SIZE),
        ],
        2,
    ):
        open_cache(*arguments)
        assert len(files(cache_dir)) == count
    assert len(decoded) == 5 * 5 + 4
    write_png(samples[2].path, np.zeros((29, 31, 3), np.uint8))
    assert not open_cache(samples, SIZE).images[2].any()
    np.testing.assert_array_equal(open_cache(samples[::-1], SIZE).images[::-1], open_cache(samples, SIZE).images)


def test_progress_is_told(samples):
    told = []
    for _ in range(2):
        open_cache(samples, SIZE, progress=lambda *step: told.append(step))
    assert told == [(done, 5, "decoding images") for done in range(1, 6)]


@pytest.mark.parametrize(
    ("content", "error"), [(b"", UnreadableImageError), (b"text", UnreadableImageError), (None, PixelFormatError)]
)
def test_an_image_that_cannot_be_read_caches_nothing(samples, cache_dir, content, error):
    if content is None:
        import cv2

        cv2.imwrite(str(samples[3].path.with_suffix(".tiff")), np.zeros(SIZE, np.float32))
        content = samples[3].path.with_suffix(".tiff").read_bytes()
    samples[3].path.write_bytes(content)
    with pytest.raises(error, match=r"3\.png: "):
        open_cache(samples, SIZE)
    assert files(cache_dir) == []


def test_a_missing_image_and_no_image(samples, cache_dir):
    samples[4].path.unlink()
    with pytest.raises(UnreadableImageError, match=r"4\.png: No such file or directory"):
        open_cache(samples, SIZE)
    with pytest.raises(EmptyDataError, match="no image to read"):
        open_cache([], SIZE)
    assert not cache_dir.exists()


@pytest.mark.parametrize("keep", [0, 5, 64, 128, 1000, -1])
def test_a_cache_file_cut_short_is_made_again(samples, decoded, cache_dir, keep):
    expected = np.array(open_cache(samples, SIZE).images)
    (path,) = files(cache_dir)
    path.write_bytes(path.read_bytes()[:keep])
    np.testing.assert_array_equal(open_cache(samples, SIZE).images, expected)
    assert len(decoded) == 10
    assert files(cache_dir) == [path]


def test_a_cache_file_of_another_shape_is_made_again(samples, cache_dir):
    expected = np.array(open_cache(samples, SIZE).images)
    (path,) = files(cache_dir)
    np.save(path, expected[:3])
    np.testing.assert_array_equal(open_cache(samples, SIZE).images, expected)


# --- where it is kept -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space is taken by posix_fallocate")
def test_a_full_disk_is_noticed_before_the_first_image_and_leaves_nothing(samples, cache_dir, decoded, monkeypatch):
    def full(descriptor: int, offset: int, length: int) -> None:
        assert length >= 5 * 13 * 17 * 3
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        message = r"cannot write .*\.npy: No space left on device; .* choose another folder with EDGE_AD_CACHE"
        with pytest.raises(OutputWriteError, match=message):
            open_cache(samples, SIZE)
    assert files(cache_dir) == decoded == []  # a map written to a full disk would kill the process
    assert open_cache(samples, SIZE).images.any()


def test_a_cache_folder_that_cannot_be_made(samples, cache_dir):
    cache_dir.write_text("a file")
    with pytest.raises(OutputWriteError, match="cannot write"):
        open_cache(samples, SIZE)


def test_the_folder_is_the_one_given_or_that_of_the_environment_or_the_users(samples, tmp_path, monkeypatch):
    assert default_cache_dir() == tmp_path / "cache"
    open_cache(samples, SIZE, cache_dir=tmp_path / "given")
    assert len(files(tmp_path / "given")) == 1
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "home"))
    for unset in ("", None):
        monkeypatch.setenv("EDGE_AD_CACHE", unset) if unset is not None else monkeypatch.delenv("EDGE_AD_CACHE")
        assert tmp_path / "home" in default_cache_dir().parents


def test_the_working_directory_stays_clean(samples, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("EDGE_AD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "home"))
    before = files(tmp_path / "data")
    open_cache(samples, SIZE)
    assert files(tmp_path / "here") == []
    assert files(tmp_path / "data") == before
    assert len(files(tmp_path / "home")) == 1


# --- native size ------------------------------------------------------------------------------------------------------


def test_without_a_size_images_keep_their_own(samples):
    assert common_size([sample.path for sample in samples]) == (29, 31)
    cached = open_cache(samples, None)
    for image, sample in zip(cached.images, samples, strict=True):
        np.testing.assert_array_equal(image, read_image(sample.path))


def test_without_a_size_images_must_agree(samples, cache_dir):
    write_png(samples[3].path, np.zeros((31, 29), np.uint8))
    message = r"0\.png is 29x31, but .*3\.png is 31x29; --image-size native needs one common size: name a size instead"
    with pytest.raises(MixedSizesError, match=message):
        open_cache(samples, None)
    assert files(cache_dir) == []
    with pytest.raises(EmptyDataError):
        common_size([])
