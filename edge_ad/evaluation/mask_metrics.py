"""What the masks that users see are worth: pixels at or above the map's threshold, fixed beforehand."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ad.evaluation.pixel_pool import NOT_COUNTED


@dataclass(frozen=True)
class MaskMetrics:
    """Counts over images; sums of them are counts over all.

    Attributes:
        true_positives, false_positives, false_negatives: pixels.
        regions, regions_hit: ground-truth regions, and those of which a pixel is marked.
        normal, normal_marked: normal images, and those of which a pixel is marked.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    regions: int
    regions_hit: int
    normal: int
    normal_marked: int

    @classmethod
    def of(
        cls, anomaly_map: NDArray[np.float32], labels: NDArray[np.int32], threshold: float, *, is_normal: bool
    ) -> MaskMetrics:
        """Of one raw map (H, W), the labels of its regions (as `pool_pixels` has them), and the map's raw threshold."""
        marked, inside = (anomaly_map >= np.float32(threshold)) & (labels != NOT_COUNTED), labels > 0
        hits = int(np.count_nonzero(marked & inside))
        return cls(
            true_positives=hits,
            false_positives=int(np.count_nonzero(marked)) - hits,
            false_negatives=int(np.count_nonzero(inside)) - hits,
            regions=len(np.unique(labels[inside])),
            regions_hit=len(np.unique(labels[marked & inside])),
            normal=int(is_normal),
            normal_marked=int(is_normal and bool(marked.any())),
        )

    def __add__(self, other: MaskMetrics) -> MaskMetrics:
        return MaskMetrics(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def precision(self) -> float:
        """Of the marked pixels, the share in a region; 0 where none is marked."""
        marked = self.true_positives + self.false_positives
        return self.true_positives / marked if marked else 0.0

    @property
    def recall(self) -> float:
        """Of the regions' pixels, the share that is marked; 0 where there are none."""
        inside = self.true_positives + self.false_negatives
        return self.true_positives / inside if inside else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where both are."""
        counted = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / counted if counted else 0.0
