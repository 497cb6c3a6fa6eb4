"""Thresholds from held-out normal images, or from labelled ones.

Rules, as the command line takes them:

``sigma:K``     mean + K standard deviations (of the n values, ddof 0) of normal images; 2 or more; default, K = 3
``quantile:Q``  the Q-quantile of the normal values, 0 < Q < 1; 1 / (1 - Q) images or more, so that one may lie above
``max``         just above the largest normal value; 2 images or more
``f1``          the threshold of highest F1; labelled images of both kinds

Symbols: n images. A value at the threshold or above is anomalous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_ad.bundle.manifest import Scale
from edge_ad.errors import InputError, NonFiniteValuesError, TooFewImagesError, UndefinedMetricError

DEFAULT_RULE = "sigma:3"
MINIMUM_IMAGES = 2


class Statistic(StrEnum):
    """What a rule takes of the values."""

    SIGMA = "sigma"
    QUANTILE = "quantile"
    MAX = "max"
    F1 = "f1"


@dataclass(frozen=True)
class ThresholdRule:
    """A rule; ``parameter`` is K or Q, None for those without."""

    statistic: Statistic
    parameter: float | None = None

    @classmethod
    def parse(cls, text: str) -> ThresholdRule:
        """The rule written as ``text``; `str` is the inverse.

        >>> ThresholdRule.parse("quantile:0.99")
        ThresholdRule(statistic=<Statistic.QUANTILE: 'quantile'>, parameter=0.99)

        Raises:
            InputError: unknown, or its number is missing, superfluous or out of range.
        """
        name, colon, number = text.partition(":")
        try:
            statistic, parameter = Statistic(name), float(number) if colon else None
        except ValueError as error:
            raise _unknown(text) from error
        match statistic:
            case Statistic.SIGMA:
                valid = parameter is not None and 0 < parameter < math.inf
            case Statistic.QUANTILE:
                valid = parameter is not None and 0 < parameter < 1
            case _:
                valid = parameter is None
        if not valid:
            raise _unknown(text)
        return cls(statistic, parameter)

    def __str__(self) -> str:
        return self.statistic.value if self.parameter is None else f"{self.statistic}:{self.parameter:.15g}"

    @property
    def minimum_images(self) -> int:
        """Number of normal images the rule needs."""
        if self.statistic is Statistic.QUANTILE and self.parameter is not None:
            # 1 / (1 - 0.99) is 100 and a little in floating point
            return max(MINIMUM_IMAGES, math.ceil(round(1 / (1 - self.parameter), 6)))
        return 1 if self.statistic is Statistic.F1 else MINIMUM_IMAGES

    def check_normal(self, count: int) -> None:
        """Can the rule be fitted on ``count`` normal images, without labelled ones?

        Raises:
            UndefinedMetricError: ``f1`` needs labels.
            TooFewImagesError: fewer images than the rule needs.
        """
        if self.statistic is Statistic.F1:
            raise UndefinedMetricError(
                "threshold rule 'f1' needs labelled images, normal and anomalous; give both, or choose another rule"
            )
        if count < self.minimum_images:
            raise TooFewImagesError(
                f"threshold rule {str(self)!r} needs at least {self.minimum_images} normal images that nothing was "
                f"trained on, but got {count}; give more (train: a larger --held-out), or choose another rule"
            )

    def fit(self, values: ArrayLike, labels: ArrayLike | None = None) -> float:
        """The threshold for values (n,), all normal where ``labels`` (n,), true for anomalous, is None: a float32.

        >>> ThresholdRule.parse("sigma:2").fit([1.0, 3.0])
        4.0

        Raises:
            TooFewImagesError: fewer normal values than the rule needs.
            UndefinedMetricError: ``f1`` without labels, or with labels of one kind.
            NonFiniteValuesError: a value is NaN or infinite.
        """
        values = _finite(values)
        if self.statistic is Statistic.F1 and labels is not None:
            return f1_threshold(values, labels)
        normal = _normal(values, labels)
        self.check_normal(len(normal))
        above_all = float(np.nextafter(np.float32(normal.max()), np.float32(np.inf)))  # raw values are float32
        match self.statistic, self.parameter:
            case Statistic.SIGMA, float(sigmas) if normal.std() > 0:
                return float(np.float32(normal.mean() + sigmas * normal.std()))
            case Statistic.QUANTILE, float(quantile):
                return float(np.float32(np.quantile(normal, quantile)))
            case _:  # equal values have no deviation, and are not anomalous
                return above_all


def f1_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold of highest F1 for scores (n,): halfway between the lowest score it keeps and the next below.

    Raises:
        UndefinedMetricError: labels (n,) of one kind.
        NonFiniteValuesError: a score is NaN or infinite.
    """
    scores, labels = _finite(scores), np.asarray(labels, bool)
    if labels.all() or not labels.any():
        raise UndefinedMetricError(f"F1 needs normal and anomalous images, but all {len(labels)} are of one kind")
    order = np.argsort(-scores)
    ranked, hits = scores[order], np.cumsum(labels[order])
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # a threshold takes all of equal scores
    f1 = 2 * hits[last] / (last + 1 + labels.sum())
    best = int(last[f1.argmax()])
    kept, below = ranked[best], ranked[min(best + 1, len(ranked) - 1)]
    halfway = float(np.float32((kept + below) / 2))  # as detectors compare
    return halfway if below < halfway <= kept else float(kept)  # neighbours have nothing between them


def fit_scales(
    rule: str, scores: ArrayLike, map_maxima: ArrayLike, map_low: float, labels: ArrayLike | None = None
) -> tuple[Scale, Scale]:
    """Scales of image scores and of maps.

    Args:
        rule: see the module docstring.
        scores: (n,) raw image scores of held-out images.
        map_maxima: (n,) largest raw map value of each: a normal image stays below the threshold everywhere.
        map_low: raw map value shown as 0: the median over normal maps.
        labels: (n,) true for anomalous; all normal where None.

    Raises:
        InputError and errors of `ThresholdRule.parse` and `ThresholdRule.fit`.
    """
    chosen = ThresholdRule.parse(rule)
    score_threshold, map_threshold = chosen.fit(scores, labels), chosen.fit(map_maxima, labels)
    score_low = float(_normal(_finite(scores), labels).min())
    return make_scale(score_low, score_threshold), make_scale(map_low, map_threshold)


def make_scale(low: float, threshold: float) -> Scale:
    """A scale whose low lies truly below its threshold, also where all values were equal."""
    return Scale(min(low, threshold - 1e-6 * (abs(threshold) or 1.0)), threshold)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise NonFiniteValuesError(f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} values are not finite")
    return values


def _normal(values: NDArray[np.float64], labels: ArrayLike | None) -> NDArray[np.float64]:
    return values if labels is None else values[~np.asarray(labels, bool)]


def _unknown(text: str) -> InputError:
    return InputError(f"unknown threshold rule {text!r}; expected sigma:3, quantile:0.99, max or f1")
