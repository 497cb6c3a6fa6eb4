"""What the synthetic data sets draw with: light and lens, spots and scratches; and how they are written.

Symbols: H, W image size. numpy and OpenCV.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.atomic import staged_folder
from edge_ad.imaging import encode_png
from edge_ad.progress import Progress
from edge_ad.tiling import Size

Rng = np.random.Generator
Canvas = NDArray[np.float32]  # (H, W, 3) RGB, 0..255


@dataclass
class StagedImages:
    """Images of a data set that is being written; each has a generator of its own, by seed and number."""

    folder: Path
    seed: int
    total: int
    progress: Progress
    done: int = 0

    def rng(self) -> Rng:
        """The generator of the next image."""
        self.done += 1
        self.progress(self.done, self.total, "synthetic images")
        return np.random.default_rng((self.seed, self.done))

    def write(self, relative: str, image: NDArray[np.uint8]) -> None:
        """Write an image or a mask."""
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))


@contextmanager
def staged_images(folder: str | Path, seed: int, total: int, progress: Progress) -> Iterator[StagedImages]:
    """A data set that appears as ``folder``, which must not exist, once it is whole."""
    with staged_folder(Path(folder)) as stage:
        yield StagedImages(stage, seed, total, progress)


def finish(surface: Canvas, rng: Rng) -> NDArray[np.uint8]:
    """Illumination, lens and sensor."""
    height, width = surface.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - 0.16 * (y**2 + x**2)
    slope = 1 + rng.normal(0, 0.012) * y + rng.normal(0, 0.012) * x
    light = (rng.normal(1, 0.012) * vignette * slope).astype(np.float32)
    blurred = cv2.GaussianBlur(surface * light[..., None], (0, 0), 0.55)
    noise = rng.normal(0, 1, surface.shape).astype(np.float32) * (0.8 + 0.012 * blurred)
    pixels: NDArray[np.uint8] = np.clip(np.round(blurred + noise), 0, 255).astype(np.uint8)
    return pixels


def inside(distance: NDArray[Any], edge: float, softness: float) -> NDArray[Any]:
    """1 where ``distance`` is well below ``edge``, 0 well beyond: a sigmoid, written so that it cannot overflow."""
    strength: NDArray[Any] = 0.5 - 0.5 * np.tanh((distance - edge) / (2 * softness))
    return strength


def blob(rng: Rng, size: Size, centre: tuple[float, float], radius: float) -> NDArray[np.float32]:
    """A soft irregular spot, 0..1."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    dy, dx = y - centre[0], x - centre[1]
    angle = np.arctan2(dy, dx)
    wobble = sum(rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    distance = np.hypot(dy, dx) / (radius * np.maximum(1 + wobble, 0.4))
    return inside(distance, 1.0, 1 / (0.9 * radius)).astype(np.float32)


def blend(
    image: Canvas, strength: NDArray[np.float32], change: NDArray[np.float32] | float
) -> tuple[Canvas, NDArray[np.bool_]]:
    """Add ``change`` weighted by ``strength`` (H, W) in 0..1; the mask is where it is a quarter or more."""
    image += strength[..., None] * change
    return np.clip(image, 4, 250), strength >= 0.25


def scratch(image: Canvas, rng: Rng, at: tuple[float, float]) -> tuple[Canvas, NDArray[np.bool_]]:
    """A thin bent line with a bright shoulder around ``at`` (y, x), and its mask."""
    height, width = image.shape[:2]
    side = min(height, width)
    cy, cx = at
    angle, length = rng.uniform(0.5, 2.6), rng.uniform(0.05, 0.13) * side
    t = np.linspace(-0.5, 0.5, 24)
    bend = rng.normal(0, 0.12) * length * (t**2 - 0.08)
    points = np.stack(
        [
            cx + np.cos(angle) * t * length - np.sin(angle) * bend,
            cy + np.sin(angle) * t * length + np.cos(angle) * bend,
        ],
        1,
    )
    layer = np.zeros((height, width), np.uint8)
    thick = max(1, round(side * rng.uniform(0.0025, 0.0045)))
    cv2.polylines(layer, [np.round(points * 16).astype(np.int32)], False, 255, thick, cv2.LINE_AA, shift=4)
    core: NDArray[Any] = cv2.GaussianBlur(layer.astype(np.float32) / 255, (0, 0), 0.6)
    image += 34 * np.clip(np.roll(core, (thick, thick), (0, 1)) - core, 0, 1)[..., None]
    return blend(image, core, float(rng.uniform(-70, -48)))
