"""Thresholds from held-out normal images, or from labelled ones.

Rules, as the command line takes them:

``sigma:K``     mean + K standard deviations of the normal values (the default, K = 3)
``quantile:Q``  the Q-quantile of the normal values; wants 1 / (1 - Q) images
``max``         the largest normal value
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Scale
from edge_ad.errors import InputError, TooFewImagesError

DEFAULT_RULE = "sigma:3"
MINIMUM_IMAGES = 2


def threshold(rule: str, values: NDArray[np.floating]) -> float:
    """The threshold that ``rule`` puts on values (n,) of normal images.

    >>> threshold("sigma:2", np.array([1.0, 3.0])), threshold("max", np.array([1.0, 3.0]))
    (4.0, 3.0)

    Raises:
        InputError: unknown rule, or a number out of range.
        TooFewImagesError: fewer values than the rule needs.
    """
    name, _, number = rule.partition(":")
    parameter = _number(rule, number)
    least = MINIMUM_IMAGES
    if name == "quantile" and parameter is not None and 0 < parameter < 1:
        least = max(least, math.ceil(round(1 / (1 - parameter), 6)))
    if len(values) < least:
        raise TooFewImagesError(
            f"threshold rule {rule!r} needs at least {least} held-out normal images, but got {len(values)}; "
            "hold out more (--held-out), or choose another --threshold"
        )
    if name == "sigma" and parameter is not None and parameter > 0:
        return float(values.mean() + parameter * values.std())
    if name == "quantile" and parameter is not None and 0 < parameter < 1:
        return float(np.quantile(values, parameter))
    if name == "max" and not number:
        return float(values.max())
    raise InputError(f"unknown threshold rule {rule!r}; expected sigma:3, quantile:0.99 or max")


def f1_threshold(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """The threshold of highest F1 on labelled images: halfway between the lowest score it keeps and the next below."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + labels.sum())
    last = np.r_[ranked[1:] < ranked[:-1], True]  # a threshold takes all of equal scores
    best = int(np.flatnonzero(last)[f1[last].argmax()])
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best]
    return float((ranked[best] + below) / 2)


def fit_scales(
    rule: str, scores: NDArray[np.floating], map_maxima: NDArray[np.floating], map_low: float
) -> tuple[Scale, Scale]:
    """Scales of image scores and of maps from held-out normal images.

    Args:
        rule: see the module docstring.
        scores: (n,) raw image scores.
        map_maxima: (n,) largest raw map value of each image: a normal image stays below the threshold everywhere.
        map_low: raw map value shown as 0.
    """
    score_threshold, map_threshold = threshold(rule, scores), threshold(rule, map_maxima)
    return make_scale(float(scores.min()), score_threshold), make_scale(map_low, map_threshold)


def make_scale(low: float, at: float) -> Scale:
    """A scale whose low lies truly below its threshold, also where all values were equal."""
    return Scale(min(low, at - 1e-6 * max(1.0, abs(at))), at)


def _number(rule: str, text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise InputError(f"threshold rule {rule!r}: {text!r} is not a number") from error
