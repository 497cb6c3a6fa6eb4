"""The pixels of a test set, sorted once, and the curves of region overlap they give.

A set of a hundred images has tens of millions of pixels, of which perhaps one in a hundred is anomalous. Recall and
region overlap change only at the values of anomalous pixels, so every curve is straight between them: the anomalous
pixels are ranked, and of the normal ones it is enough to count how many lie above each anomalous value, which a sort
of their bare values tells. No bins, no sampled thresholds.

Images are pooled by kind of defect: counts add up, so that one sort serves each kind and all of them together.

Symbols: P anomalous and Q normal pixels; K distinct values of anomalous pixels; R ground-truth regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.data.saturation import Region
from edge_ad.errors import MaskSizeError, NonFiniteValuesError
from edge_ad.evaluation.curve import Curve
from edge_ad.tiling import Size, format_size

CONNECTIVITY = 8
NOT_COUNTED = -1  # in labels: neither a region nor normal


@dataclass(frozen=True, eq=False)
class RegionPixels:
    """The E pixels of R regions: their ``values`` (E,), and by which ``shares`` (E,) each completes its own region."""

    values: NDArray[np.float32]
    shares: NDArray[np.float64]
    regions: int

    @classmethod
    def joined(cls, parts: Sequence[RegionPixels]) -> RegionPixels:
        """Those of all ``parts``."""
        return cls(
            np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)]),
            np.concatenate([np.empty(0, np.float64), *(part.shares for part in parts)]),
            sum(part.regions for part in parts),
        )


@dataclass(frozen=True, eq=False)
class PixelPool:
    """All pixels of some images.

    Attributes:
        normal: (Q,) values outside all regions, ascending.
        connected: of regions that are connected components; every one of the P anomalous pixels once.
        saturated: of regions that a data set defines itself, each complete at its saturation area; a pixel may be in
            several, and those beyond the area are left out.
    """

    normal: NDArray[np.float32]
    connected: RegionPixels
    saturated: RegionPixels


def label_regions(mask: NDArray[np.bool_], size: Size | None = None) -> NDArray[np.int32]:
    """The connected regions of ``mask`` (H, W), numbered from 1, at ``size`` or the mask's own; 0 outside of them.

    Numbered before they are resized, by the nearest pixel: a crack of one pixel that a smaller mask shows in pieces
    stays one region. A region that vanishes leaves a gap in the numbers.
    """
    return regions_and_lost(mask, size)[0]


def regions_and_lost(mask: NDArray[np.bool_], size: Size | None = None) -> tuple[NDArray[np.int32], int]:
    """`label_regions`, and how many regions vanish at ``size``."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=CONNECTIVITY)
    lost = 0
    if size is not None and size != mask.shape:
        labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        lost = count - 1 - int(np.count_nonzero(np.unique(labels)))  # 0 is the background
    return np.asarray(labels, np.int32), lost


def pool_pixels(
    maps: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.int32]],
    regions: Sequence[Sequence[Region]] = (),
) -> PixelPool:
    """Pool raw maps float32 (H, W) with the `label_regions` of their masks.

    Args:
        maps, labels: of each image; pixels labelled `NOT_COUNTED` are left out.
        regions: of each image, where the data set defines them itself; their union is what is labelled.

    Raises:
        NonFiniteValuesError: a map holds NaN or infinity.
        MaskSizeError: labels and their map differ in size.
    """
    normal = np.empty(sum(int(np.count_nonzero(each == 0)) for each in labels), np.float32)
    connected, filled = [], 0
    for index, (anomaly_map, numbers) in enumerate(zip(maps, labels, strict=True)):
        if anomaly_map.shape != numbers.shape:
            raise MaskSizeError(
                f"anomaly map {index} is {format_size(anomaly_map.shape)}, but its mask {format_size(numbers.shape)}"
            )
        if not np.isfinite(anomaly_map).all():
            raise NonFiniteValuesError(f"anomaly map {index} holds NaN or infinity")
        outside = anomaly_map.ravel()
        if numbers.any():
            connected.append(_connected(anomaly_map, numbers))
            outside = anomaly_map[numbers == 0]
        normal[filled : filled + outside.size] = outside
        filled += outside.size
    normal.sort()
    pairs = zip(maps, regions, strict=True) if regions else ()
    saturated = [_saturated(anomaly_map, region) for anomaly_map, inside in pairs for region in inside]
    return PixelPool(normal, RegionPixels.joined(connected), RegionPixels.joined(saturated))


@dataclass(frozen=True, eq=False)
class Ranking:
    """Anomalous pixels by descending value, and the normal ones that come with them.

    Attributes:
        order: (E,) indices that sort the pixels.
        last: (K,) positions in ``order`` of the last pixel of each distinct value: equal values enter together.
        values: (K,) the distinct values.
        above, reached: (K,) number of normal pixels above each value; and above or equal.
        normal: Q.
    """

    order: NDArray[np.int64]
    last: NDArray[np.int64]
    values: NDArray[np.float32]
    above: NDArray[np.int64]
    reached: NDArray[np.int64]
    normal: int

    @classmethod
    def of(cls, values: NDArray[np.float32], normal: Sequence[NDArray[np.float32]]) -> Ranking:
        """Of ``values`` (E,) against ``normal``, arrays sorted ascending."""
        order = np.argsort(-values)
        ranked = values[order]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.empty(0, np.int64)
        distinct = ranked[last]
        count = sum(len(part) for part in normal)
        above, reached = np.full(len(distinct), count), np.full(len(distinct), count)
        for part in normal:
            above -= np.searchsorted(part, distinct, side="right")
            reached -= np.searchsorted(part, distinct, side="left")
        return cls(order, last, distinct, above, reached, count)

    def curve(self, height: NDArray[np.float64]) -> Curve:
        """``height`` (K,) over the false-positive rate, from (0, 0) to (1, 1): flat up to the rate above each value,
        then straight to the rate that has reached it: vertical unless normal pixels tie with it."""
        before = np.concatenate(([0.0], height[:-1]))
        rates = np.stack((self.above, self.reached), axis=1).ravel() / self.normal
        heights = np.stack((before, height), axis=1).ravel()
        return Curve(np.concatenate(([0.0], rates, [1.0])), np.concatenate(([0.0], heights, [1.0])))

    def overlap(self, shares: NDArray[np.float64], regions: int) -> Curve:
        """Mean overlap over ``regions``, of pixels whose ``shares`` (E,) come in the order of the values ranked."""
        return self.curve(np.minimum(np.cumsum(shares[self.order] / regions)[self.last], 1.0))


def _connected(anomaly_map: NDArray[np.float32], labels: NDArray[np.int32]) -> RegionPixels:
    """Each of n pixels completes its region by 1 / n."""
    inside = labels > 0
    sizes = np.bincount(labels[inside])
    return RegionPixels(anomaly_map[inside], 1.0 / sizes[labels[inside]], int(np.count_nonzero(sizes)))


def _saturated(anomaly_map: NDArray[np.float32], region: Region) -> RegionPixels:
    """The highest pixels complete it, by 1 / saturation each, the last by what is left. Ties may come in any order."""
    values = np.sort(anomaly_map[region.mask])[::-1][: int(np.ceil(region.saturation_px))]
    found = np.minimum(np.arange(1, len(values) + 1) / region.saturation_px, 1.0)
    return RegionPixels(values, np.diff(found, prepend=0.0), 1)
