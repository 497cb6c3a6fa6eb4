"""A synthetic inspection task: brushed metal plates with drilled holes and an engraving, and small defects with masks.

Every plate has the same structure at the same place, as a fixture gives it: what is normal depends on the location,
which is the case for one model per tile location. Illumination, position, grain and sensor noise vary from plate to
plate. Deterministic by seed. numpy and OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.data.drawing import Canvas, Rng, blend, blob, finish, inside, scratch, staged_images
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import Size

_HOLES = ((0.20, 0.18), (0.20, 0.82), (0.80, 0.18), (0.80, 0.82), (0.50, 0.50))  # (y, x) of the image size
_HOLE_RADIUS = (0.055, 0.055, 0.055, 0.055, 0.105)  # of the shorter side


def plate(rng: Rng, size: Size) -> NDArray[np.uint8]:
    """A normal plate, uint8 (H, W, 3) RGB."""
    return finish(_surface(rng, size), rng)


def defective_plate(rng: Rng, size: Size, kind: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A plate with one defect of ``kind`` (a key of `DEFECTS`), and the mask of the pixels it touches."""
    damaged, mask = DEFECTS[kind](_surface(rng, size), rng)
    return finish(damaged, rng), mask


def write_synthetic(
    folder: Path,
    *,
    seed: int = 0,
    size: Size = (512, 512),
    train: int = 40,
    test_good: int = 10,
    test_defective: int = 20,
    progress: Progress = no_progress,
) -> Path:
    """Write a data set in MVTec layout and return its folder.

    Args:
        folder: must not exist.
        seed: the same seed gives the same images.
        size: (H, W).
        train, test_good, test_defective: number of images; defects take turns.

    Raises:
        OutputExistsError, OutputWriteError: ``folder`` exists, or cannot be written.
    """
    kinds = list(DEFECTS)
    with staged_images(folder, seed, train + test_good + test_defective, progress) as images:
        for index in range(train):
            images.write(f"train/good/{index:03d}.png", plate(images.rng(), size))
        for index in range(test_good):
            images.write(f"test/good/{index:03d}.png", plate(images.rng(), size))
        for index in range(test_defective):
            kind = kinds[index % len(kinds)]
            image, mask = defective_plate(images.rng(), size, kind)
            images.write(f"test/{kind}/{index:03d}.png", image)
            images.write(f"ground_truth/{kind}/{index:03d}_mask.png", mask.astype(np.uint8) * 255)
    return Path(folder)


def _surface(rng: Rng, size: Size) -> Canvas:
    """Brushed steel with its machining, before illumination and noise."""
    height, width = size
    grain = rng.normal(0, 1, (height, width)).astype(np.float32)
    fine = cv2.GaussianBlur(grain, (0, 0), sigmaX=max(2.0, width / 24), sigmaY=0.6)
    coarse = cv2.GaussianBlur(
        rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), sigmaX=width / 8, sigmaY=2.2
    )
    steel = 146 + 9 * fine / fine.std() + 4 * coarse / coarse.std()
    image = np.stack([steel * tint for tint in (0.985, 1.0, 1.03)], -1).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    side = min(size)
    shift = rng.normal(0, 0.0015 * side, 2)
    for (cy, cx), radius in zip(_HOLES, _HOLE_RADIUS, strict=True):
        _hole(image, y, x, (cy * height + shift[0], cx * width + shift[1]), radius * side)
    _engraving(image, shift, side)
    return image


def _hole(
    image: Canvas, y: NDArray[np.float32], x: NDArray[np.float32], centre: tuple[float, float], radius: float
) -> None:
    """A drilled hole: dark bore, bright chamfer lit from the upper left, turning marks around it."""
    dy, dx = y - centre[0], x - centre[1]
    distance, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    chamfer = np.exp(-(((distance - radius) / (0.09 * radius + 1)) ** 2))
    marks = np.sin(distance * (2 * np.pi / (0.09 * radius + 1.5))) * np.exp(
        -(((distance - 1.35 * radius) / (0.3 * radius)) ** 2)
    )
    light = np.cos(angle + 2.4)
    bore = inside(distance, radius, 0.8)
    image += (chamfer * (30 + 42 * light) + marks * 6)[..., None]
    depth = 34 + 16 * np.clip(-light * distance / radius, -1, 1)
    image *= (1 - bore)[..., None]
    image += (bore * depth)[..., None]


def _engraving(image: Canvas, shift: NDArray[np.float64], side: int) -> None:
    """A part number and a milled frame."""
    height, width = image.shape[:2]
    layer = np.zeros((height, width), np.uint8)
    scale, thick = side / 512, max(1, round(side / 256))
    text_at = (round(0.33 * width + shift[1]), round(0.86 * height + shift[0]))
    cv2.putText(layer, "EA-2403", text_at, cv2.FONT_HERSHEY_DUPLEX, 1.05 * scale, 255, thick, cv2.LINE_AA)
    margin = 0.05
    top_left = (round(margin * width + shift[1]), round(margin * height + shift[0]))
    bottom_right = (round((1 - margin) * width + shift[1]), round((1 - margin) * height + shift[0]))
    cv2.rectangle(layer, top_left, bottom_right, 255, thick, cv2.LINE_AA)
    cut = cv2.GaussianBlur(layer.astype(np.float32) / 255, (0, 0), 0.7 * max(1.0, scale))
    edge = np.roll(cut, (thick, thick), (0, 1))
    image -= 62 * cut[..., None]
    image += 38 * np.clip(edge - cut, 0, 1)[..., None]


def _place(rng: Rng, size: Size, margin: float = 0.08) -> tuple[float, float]:
    """A point on the plain surface, away from the bores."""
    height, width = size
    while True:
        cy, cx = rng.uniform(margin, 1 - margin, 2)
        clear = all(
            np.hypot((cy - hy) * height, (cx - hx) * width) > 1.25 * radius * min(size)
            for (hy, hx), radius in zip(_HOLES, _HOLE_RADIUS, strict=True)
        )
        if clear:
            return cy * height, cx * width


def _scratch(image: Canvas, rng: Rng) -> tuple[Canvas, NDArray[np.bool_]]:
    return scratch(image, rng, _place(rng, image.shape[:2]))


def _pit(image: Canvas, rng: Rng) -> tuple[Canvas, NDArray[np.bool_]]:
    """A cluster of corrosion pits: dark irregular spots with a rusty rim."""
    height, width = image.shape[:2]
    side = min(height, width)
    cy, cx = _place(rng, (height, width))
    strength = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        oy, ox = rng.normal(0, 0.010 * side, 2)
        radius = rng.uniform(0.006, 0.013) * side
        strength = np.maximum(strength, blob(rng, (height, width), (cy + oy, cx + ox), radius))
    return blend(image, strength, np.array([-52.0, -68.0, -82.0], np.float32))


def _stain(image: Canvas, rng: Rng) -> tuple[Canvas, NDArray[np.bool_]]:
    """A faint oily film with a darker edge."""
    height, width = image.shape[:2]
    side = min(height, width)
    film = blob(rng, (height, width), _place(rng, (height, width)), rng.uniform(0.024, 0.042) * side)
    edge = np.clip(film * (1 - film) * 4, 0, 1)
    image -= 16 * edge[..., None]
    return blend(image, film, np.array([-12.0, -24.0, -40.0], np.float32) * float(rng.uniform(0.8, 1.2)))


def _chip(image: Canvas, rng: Rng) -> tuple[Canvas, NDArray[np.bool_]]:
    """Metal broken out of, or a burr left on, the rim of a bore."""
    height, width = image.shape[:2]
    side = min(height, width)
    index = int(rng.integers(len(_HOLES)))
    (hy, hx), radius, angle = _HOLES[index], _HOLE_RADIUS[index] * side, rng.uniform(0, 2 * np.pi)
    at = (hy * height + 1.06 * radius * np.sin(angle), hx * width + 1.06 * radius * np.cos(angle))
    strength = blob(rng, (height, width), at, rng.uniform(0.009, 0.016) * side)
    local = float(cv2.GaussianBlur(image[..., 1], (0, 0), 3)[int(at[0]), int(at[1])])
    return blend(image, strength, -75.0 if local > 110 else 85.0)


DEFECTS: dict[str, Callable[[Canvas, Rng], tuple[Canvas, NDArray[np.bool_]]]] = {
    "scratch": _scratch,
    "pit": _pit,
    "stain": _stain,
    "chip": _chip,
}
