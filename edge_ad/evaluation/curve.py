"""A curve of rates as its vertices: the area under it, and fewer vertices to draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Curve:
    """Straight lines between vertices (K,); ``x`` ascends within [0, 1], equal ``x`` make a vertical line."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]

    def up_to(self, limit: float) -> Curve:
        """The part with ``x <= limit``, its last vertex interpolated linearly."""
        # A vertical line on the limit belongs to it: np.interp over the whole curve would start from its upper end
        inside = int(np.searchsorted(self.x, limit, side="right"))
        x, y = self.x[:inside], self.y[:inside]
        if inside == len(self.x):
            return Curve(x, y)
        end = np.interp(limit, self.x[inside - 1 : inside + 1], self.y[inside - 1 : inside + 1])
        return Curve(np.append(x, limit), np.append(y, end))

    def area(self, limit: float = 1.0) -> float:
        """Trapezoidal area up to ``x == limit``, in (0, 1], divided by ``limit``.

        >>> Curve(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 1.0])).area(0.25)
        0.25
        """
        part = self.up_to(limit)
        return float(np.dot(np.diff(part.x), (part.y[1:] + part.y[:-1]) / 2) / limit)

    def thinned(self, points: int = 512) -> Curve:
        """At most ``points`` of the vertices, evenly spread over the curve's length; the first and the last stay."""
        if len(self.x) <= points:
            return self
        length = np.concatenate(([0.0], np.cumsum(np.abs(np.diff(self.x)) + np.abs(np.diff(self.y)))))
        kept = np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], points)))
        return Curve(self.x[kept], self.y[kept])
