"""Saturated per-region overlap (sPRO), the localisation metric of MVTec LOCO AD.

Source: Bergmann et al., Beyond Dents and Scratches (IJCV 2022), section 4, and its evaluation code:

* the overlap of region r is min(TP / s, 1), TP its pixels found and s its saturation area; with s = |r| it is PRO's;
* sPRO is its mean over regions, every mask of every image one region;
* the false-positive rate is over all pixels outside every region, of normal and of anomalous images;
* each kind of defect is measured with its own images and all normal ones, and kinds have equal weight in the mean.

The area under sPRO against the false-positive rate is exact here, up to a limit and divided by it; the evaluation code
samples thresholds. It compares at the size of the image files: choose that size to compare with its figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from edge_ad.errors import InputError, UndefinedMetricError
from edge_ad.evaluation.curve import Curve
from edge_ad.evaluation.pixel_pool import PixelPool, Ranking, RegionPixels

SPRO_LIMIT = 0.05  # what the benchmark reports first; limits are not comparable with each other


@dataclass(frozen=True)
class SproMetrics:
    """How well raw anomaly maps find regions that need not be found whole.

    Attributes:
        auspro: mean over kinds of defect of ``auspro_by_defect``.
        auspro_by_defect: area under the curve up to a false-positive rate of ``limit``, divided by it, by kind.
        limit: of the false-positive rate.
        regions: number of masks.
    """

    auspro: float
    auspro_by_defect: dict[str, float]
    limit: float
    regions: int


def spro_metrics(
    normal: PixelPool, defects: Mapping[str, PixelPool], limit: float = SPRO_LIMIT
) -> tuple[SproMetrics, dict[str, Curve]]:
    """Metrics, and a curve per kind, of pools whose ``saturated`` regions are those of the data set.

    Args:
        normal: of the normal images.
        defects: of the anomalous images, by kind; a kind without a region is left out.

    Raises:
        UndefinedMetricError: no region at all, or no normal pixel.
        InputError: ``limit`` is not in (0, 1].
    """
    if not 0 < limit <= 1:
        raise InputError(f"expected an sPRO limit in (0, 1], but got {limit}")
    curves = {kind: _curve(normal, pool) for kind, pool in defects.items() if pool.saturated.regions}
    if not curves:
        raise UndefinedMetricError("sPRO needs ground-truth regions, but no mask marks one")
    areas = {kind: curve.area(limit) for kind, curve in curves.items()}
    regions = sum(pool.saturated.regions for pool in defects.values())
    return SproMetrics(statistics.fmean(areas.values()), areas, limit, regions), curves


def _curve(normal: PixelPool, defects: PixelPool) -> Curve:
    pixels: RegionPixels = defects.saturated
    ranking = Ranking.of(pixels.values, [normal.normal, defects.normal])
    if not ranking.normal:
        raise UndefinedMetricError("sPRO needs normal pixels, but all are anomalous")
    return ranking.overlap(pixels.shares, pixels.regions)
