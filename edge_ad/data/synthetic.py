"""A synthetic inspection task: brushed metal plates with drilled holes and an engraving, and small defects with masks.

Every plate has the same structure at the same place, as a fixture gives it: what is normal depends on the location,
which is the case for one model per tile location. Illumination, position, grain and sensor noise vary from plate to
plate. Deterministic by seed. numpy and OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.atomic import staged_folder
from edge_ad.imaging import encode_png
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import Size

_Rng = np.random.Generator
_Image = NDArray[np.float32]  # (H, W, 3) RGB, 0..255

_HOLES = ((0.20, 0.18), (0.20, 0.82), (0.80, 0.18), (0.80, 0.82), (0.50, 0.50))  # (y, x) of the image size
_HOLE_RADIUS = (0.055, 0.055, 0.055, 0.055, 0.105)  # of the shorter side


def plate(rng: _Rng, size: Size) -> NDArray[np.uint8]:
    """A normal plate, uint8 (H, W, 3) RGB."""
    return _finish(_surface(rng, size), rng)


def defective_plate(rng: _Rng, size: Size, kind: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A plate with one defect of ``kind`` (a key of `DEFECTS`), and the mask of the pixels it touches."""
    damaged, mask = DEFECTS[kind](_surface(rng, size), rng)
    return _finish(damaged, rng), mask


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
    """
    total, done = train + test_good + test_defective, 0
    kinds = list(DEFECTS)
    with staged_folder(Path(folder)) as stage:

        def write(relative: str, image: NDArray[np.uint8]) -> None:
            path = stage / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))

        def rng() -> _Rng:
            nonlocal done
            done += 1
            progress(done, total, "synthetic images")
            return np.random.default_rng((seed, done))

        for index in range(train):
            write(f"train/good/{index:03d}.png", plate(rng(), size))
        for index in range(test_good):
            write(f"test/good/{index:03d}.png", plate(rng(), size))
        for index in range(test_defective):
            kind = kinds[index % len(kinds)]
            image, mask = defective_plate(rng(), size, kind)
            write(f"test/{kind}/{index:03d}.png", image)
            write(f"ground_truth/{kind}/{index:03d}_mask.png", mask.astype(np.uint8) * 255)
    return Path(folder)


def _surface(rng: _Rng, size: Size) -> _Image:
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
    image: _Image, y: NDArray[np.float32], x: NDArray[np.float32], centre: tuple[float, float], radius: float
) -> None:
    """A drilled hole: dark bore, bright chamfer lit from the upper left, turning marks around it."""
    dy, dx = y - centre[0], x - centre[1]
    distance, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    chamfer = np.exp(-(((distance - radius) / (0.09 * radius + 1)) ** 2))
    marks = np.sin(distance * (2 * np.pi / (0.09 * radius + 1.5))) * np.exp(
        -(((distance - 1.35 * radius) / (0.3 * radius)) ** 2)
    )
    light = np.cos(angle + 2.4)
    bore = _inside(distance, radius, 0.8)
    image += (chamfer * (30 + 42 * light) + marks * 6)[..., None]
    depth = 34 + 16 * np.clip(-light * distance / radius, -1, 1)
    image *= (1 - bore)[..., None]
    image += (bore * depth)[..., None]


def _engraving(image: _Image, shift: NDArray[np.float64], side: int) -> None:
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


def _finish(surface: _Image, rng: _Rng) -> NDArray[np.uint8]:
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


def _place(rng: _Rng, size: Size, margin: float = 0.08) -> tuple[float, float]:
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


def _blend(
    image: _Image, strength: NDArray[np.float32], change: NDArray[np.float32] | float
) -> tuple[_Image, NDArray[np.bool_]]:
    """Add ``change`` weighted by ``strength`` (H, W) in 0..1; the mask is where it is a quarter or more."""
    image += strength[..., None] * change
    return np.clip(image, 4, 250), strength >= 0.25


def _scratch(image: _Image, rng: _Rng) -> tuple[_Image, NDArray[np.bool_]]:
    """A thin bent line across the grain with a bright shoulder."""
    height, width = image.shape[:2]
    side = min(height, width)
    cy, cx = _place(rng, (height, width))
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
    return _blend(image, core, float(rng.uniform(-70, -48)))


def _pit(image: _Image, rng: _Rng) -> tuple[_Image, NDArray[np.bool_]]:
    """A cluster of corrosion pits: dark irregular spots with a rusty rim."""
    height, width = image.shape[:2]
    side = min(height, width)
    cy, cx = _place(rng, (height, width))
    strength = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        oy, ox = rng.normal(0, 0.010 * side, 2)
        radius = rng.uniform(0.006, 0.013) * side
        strength = np.maximum(strength, _blob(rng, (height, width), (cy + oy, cx + ox), radius))
    return _blend(image, strength, np.array([-52.0, -68.0, -82.0], np.float32))


def _stain(image: _Image, rng: _Rng) -> tuple[_Image, NDArray[np.bool_]]:
    """A faint oily film with a darker edge."""
    height, width = image.shape[:2]
    side = min(height, width)
    film = _blob(rng, (height, width), _place(rng, (height, width)), rng.uniform(0.024, 0.042) * side)
    edge = np.clip(film * (1 - film) * 4, 0, 1)
    image -= 16 * edge[..., None]
    return _blend(image, film, np.array([-12.0, -24.0, -40.0], np.float32) * float(rng.uniform(0.8, 1.2)))


def _chip(image: _Image, rng: _Rng) -> tuple[_Image, NDArray[np.bool_]]:
    """Metal broken out of, or a burr left on, the rim of a bore."""
    height, width = image.shape[:2]
    side = min(height, width)
    index = int(rng.integers(len(_HOLES)))
    (hy, hx), radius, angle = _HOLES[index], _HOLE_RADIUS[index] * side, rng.uniform(0, 2 * np.pi)
    at = (hy * height + 1.06 * radius * np.sin(angle), hx * width + 1.06 * radius * np.cos(angle))
    strength = _blob(rng, (height, width), at, rng.uniform(0.009, 0.016) * side)
    local = float(cv2.GaussianBlur(image[..., 1], (0, 0), 3)[int(at[0]), int(at[1])])
    return _blend(image, strength, -75.0 if local > 110 else 85.0)


def _blob(rng: _Rng, size: Size, centre: tuple[float, float], radius: float) -> NDArray[np.float32]:
    """A soft irregular spot, 0..1."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    dy, dx = y - centre[0], x - centre[1]
    angle = np.arctan2(dy, dx)
    wobble = sum(rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    distance = np.hypot(dy, dx) / (radius * np.maximum(1 + wobble, 0.4))
    return _inside(distance, 1.0, 1 / (0.9 * radius)).astype(np.float32)


def _inside(distance: NDArray[Any], edge: float, softness: float) -> NDArray[Any]:
    """1 where ``distance`` is well below ``edge``, 0 well beyond: a sigmoid, written so that it cannot overflow."""
    inside: NDArray[Any] = 0.5 - 0.5 * np.tanh((distance - edge) / (2 * softness))
    return inside


DEFECTS: dict[str, Callable[[_Image, _Rng], tuple[_Image, NDArray[np.bool_]]]] = {
    "scratch": _scratch,
    "pit": _pit,
    "stain": _stain,
    "chip": _chip,
}
