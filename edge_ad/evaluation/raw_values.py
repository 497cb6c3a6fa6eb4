"""What thresholds are fitted on: of every image its raw score, and the maximum and the median of its raw map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Scale
from edge_ad.evaluation.thresholds import fit_scales

Summary = tuple[float, float, float]  # of an image or a tile: score, map maximum, map median


def summary(score: np.float32, anomaly_map: NDArray[np.float32], inside: NDArray[np.bool_] | None = None) -> Summary:
    """Of one image or tile, its map (h, w); of the map only what is ``inside`` (h, w)."""
    values = anomaly_map if inside is None else anomaly_map[inside]
    return float(score), float(values.max()), float(np.median(values))


@dataclass(frozen=True)
class RawValues:
    """Of n images or tiles, (n,) float64 each."""

    scores: NDArray[np.float64]
    map_maxima: NDArray[np.float64]
    map_medians: NDArray[np.float64]

    @classmethod
    def of(cls, summaries: Sequence[Summary]) -> RawValues:
        """One per image or tile."""
        return cls(*np.array(summaries, np.float64).reshape(-1, 3).T)

    def scales(self, rule: str, bad: RawValues | None = None) -> tuple[Scale, Scale]:
        """Scales of scores and of maps, these values being of normal images and ``bad`` of defective ones.

        Raises:
            InputError and errors of `ThresholdRule.parse` and `ThresholdRule.fit`.
        """
        low = float(np.median(self.map_medians))
        if bad is None:
            return fit_scales(rule, self.scores, self.map_maxima, low)
        scores = np.concatenate([self.scores, bad.scores])
        maxima = np.concatenate([self.map_maxima, bad.map_maxima])
        labels = np.repeat([False, True], [len(self.scores), len(bad.scores)])
        return fit_scales(rule, scores, maxima, low, labels)
