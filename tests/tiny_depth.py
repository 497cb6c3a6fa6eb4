"""Images of twelve bits that show, to the last digit, what those of eight bits show."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def in_twelve_bits(image: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """0 to 4095 for 0 to 255, each at its own place between black and white: the upper four bits once more below."""
    return (image.astype(np.uint16) << 4) | (image >> 4)


def write_deep_png(path: Path, image: NDArray[np.uint8], transparent: NDArray[np.bool_]) -> None:
    """Uint8 RGB (H, W, 3) as a PNG of twelve significant bits; a red that is not to be seen where ``transparent``."""
    opacity = np.where(transparent, 0, 65535).astype(np.uint16)
    colors = np.where(transparent[:, :, None], np.array([255, 0, 0], np.uint8), image)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.dstack([in_twelve_bits(colors[:, :, ::-1]), opacity]))
