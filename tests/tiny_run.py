"""A run that trains in a second: timm's smallest ResNet, random weights, small tiles of a textured, shaken scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_ad.imaging import PixelFormat, encode_png
from edge_ad.methods import create_model
from edge_ad.methods.tile_model import TileModel
from edge_ad.setups import Setup, Sharing
from edge_ad.tiling import Size
from edge_ad.training.run_folder import DataSource, RunFolder
from edge_ad.training.trainer import TrainingImages, train

BACKBONE = "test_resnet"


def tile_setup(
    image_size: Size = (64, 96),
    tile_size: Size = (32, 48),
    stride: Size | None = None,
    sharing: Sharing = Sharing.LOCATION,
) -> Setup:
    return Setup("custom", image_size, tile_size, stride or tile_size, sharing)


def tiny_model(tile_size: Size, seed: int = 0) -> TileModel:
    """PaDiM; ``seed`` draws the weights."""
    torch.manual_seed(seed)
    return create_model("padim", tile_size, backbone=BACKBONE, weights="none", dimensions=9)


def scene(count: int, size: Size, seed: int = 0) -> NDArray[np.uint8]:
    """``count`` images uint8 (count, H, W, 3) of one smooth texture, each with its own shift, light and noise."""
    texture = np.random.default_rng(7).normal(size=(*size, 3))
    spectrum = np.fft.rfft2(texture, axes=(0, 1))
    rows, cols = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    smooth = np.fft.irfft2(spectrum * np.exp(-200 * (rows**2 + cols**2))[..., None], size, axes=(0, 1))
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        shifted = np.roll(smooth / smooth.std(), tuple(rng.integers(-1, 2, 2)), (0, 1))
        images.append(128 + 40 * rng.uniform(0.9, 1.1) * shifted + rng.normal(0, 3, (*size, 3)))
    return np.clip(np.array(images), 0, 255).astype(np.uint8)


def scene_images(setup: Setup, fit: int = 7, held_out: int = 5) -> TrainingImages:
    """Training images that lie nowhere on disk."""
    images = scene(fit + held_out, setup.image_size)
    digests = tuple(f"{index:064x}" for index in range(len(images)))
    source = DataSource("nowhere", "folder", None, PixelFormat(), "ab" * 32, digests[:fit], digests[fit:])
    return TrainingImages(images[:fit], images[fit:], source)


def tiny_run(
    folder: Path, setup: Setup | None = None, weights_seed: int = 0, **options: Any
) -> tuple[RunFolder, TrainingImages]:
    """A complete run at ``folder`` and the images it was trained on; ``options`` as for `train`."""
    setup = setup or tile_setup()
    images = scene_images(setup)
    return train(tiny_model(setup.tile_size, weights_seed), setup, images, folder, seed=0, **options), images


def write_images(folder: Path, images: NDArray[np.uint8]) -> Path:
    """``images`` as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        (folder / f"{index:02d}.png").write_bytes(encode_png(image))
    return folder
