"""Raw values to [0, 1] with 0.5 at the threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Scale


def rescale(values: NDArray[np.float32], scale: Scale, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """``values`` (any shape) on the line through (``low``, 0) and (``threshold``, 0.5), not clipped."""
    # Subtract first: gain * value + offset would lose the digits that tell large, close values apart.
    shifted = np.subtract(values, np.float32(scale.low), out=out)
    shifted *= np.float32(0.5 / (scale.threshold - scale.low))
    return shifted


def normalise(values: NDArray[np.float32], scale: Scale) -> NDArray[np.float32]:
    """`rescale`, clipped to [0, 1].

    >>> normalise(np.array([0, 1, 3, 5, 9], np.float32), Scale(low=1.0, threshold=3.0)).tolist()
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    scaled: NDArray[Any] = rescale(values, scale)
    return np.clip(scaled, 0, 1, out=scaled)
