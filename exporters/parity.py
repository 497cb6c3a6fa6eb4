"""Does the exported bundle compute what was trained? Maps, scores, ranks and labels against the torch model.

The images are held-out normal ones, plus the same with a planted defect: among normal images alone all scores lie close
together, and ranks would say nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Parity, Precision, Scale
from edge_ad.errors import AccuracyDropError, ParityError
from edge_ad.evaluation.evaluate import RawOutputs
from edge_ad.runtime.session import ExecutionPrecision

# Largest error allowed, relative to the range of the reference's maps, and least rank correlation of scores. float32
# engines reorder sums: 1e-6 is usual. Half-precision constants: 1e-3. Eight bits: a rounding of features in which the
# distances are measured anew, so values move and their order must not. On real images sound exports moved a map by 0.02
# to 0.13 at its worst pixel, those whose activations were cut off by up to 0.54, heads in the wrong place by 1.06.
TOLERANCES = {
    Precision.FP32: (1e-3, 0.999),
    Precision.FP16: (1e-2, 0.99),
    Precision.INT8: (0.5, 0.9),
}

ROUNDING = 1e-4  # of the range of scores: differences below it do not change ranks, near ties would


def plant_defects(
    images: NDArray[np.uint8], inside: NDArray[np.bool_] | None = None, *, seed: int = 0
) -> NDArray[np.uint8]:
    """A copy of ``images`` (n, H, W, 3) with one defect each: a small patch from elsewhere, brighter or darker.

    Args:
        inside: (H, W) true where the detector looks; the middle of a defect lies there. None: anywhere.
    """
    rng = np.random.default_rng(seed)
    planted = images.copy()
    places = None if inside is None else np.argwhere(inside)
    height, width = images.shape[1:3]
    for image in planted:
        h, w = (int(rng.integers(max(4, side // 32), max(5, side // 10))) for side in (height, width))
        (top, from_top), (left, from_left) = rng.integers(0, height - h, 2), rng.integers(0, width - w, 2)
        if places is not None:
            row, col = rng.choice(places)
            top, left = np.clip(row - h // 2, 0, height - h), np.clip(col - w // 2, 0, width - w)
        gain = rng.choice([0.5, 1.6])
        patch = image[from_top : from_top + h, from_left : from_left + w] * gain
        image[top : top + h, left : left + w] = np.clip(patch, 0, 255).astype(np.uint8)
    return planted


def compare(
    reference: RawOutputs, exported: RawOutputs, scales: tuple[Scale, Scale], *, execution_precision: str, device: str
) -> Parity:
    """The parity of two detectors on the same images.

    Args:
        scales: score scale of either side; a label flips where one is at its threshold and the other is not.
    """
    span = float(np.ptp(reference.maps))
    difference = np.abs(exported.maps - reference.maps)
    same = np.abs(exported.scores - reference.scores) <= ROUNDING * np.ptp(reference.scores)
    labels = [outputs.scores >= scale.threshold for outputs, scale in zip((reference, exported), scales, strict=True)]
    return Parity(
        execution_precision=execution_precision,
        device=device,
        images=len(reference.scores),
        map_max_abs=float(difference.max()),
        map_max_rel=float(difference.max() / span) if span > 0 else float(difference.max()),
        score_max_abs=float(np.abs(exported.scores - reference.scores).max()),
        score_rank_correlation=rank_correlation(reference.scores, np.where(same, reference.scores, exported.scores)),
        label_flips=int((labels[0] != labels[1]).sum()),
    )


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's correlation of (n,) and (n,), ties ranked by their mean.

    Where it is undefined: 1 if both sides are constant, for they agree, and 0 if only one is.
    """
    constant = [bool(np.ptp(values) == 0) for values in (a, b)]
    if any(constant):
        return float(all(constant))
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return mean_ranks[index]


def shortfall(
    parity: Parity, precision: Precision, tolerance: float | None = None, rank: float | None = None
) -> str | None:
    """Where maps differ by more than ``tolerance``, or ranks correlate by less than ``rank``: by how much. Else None.

    Where these are None, `TOLERANCES` says. What ran in less than float32 may differ by as much as int8, whatever
    ``precision`` is stored.
    """
    is_exact = parity.execution_precision == ExecutionPrecision.F32
    allowed, least_rank = TOLERANCES[precision if is_exact else Precision.INT8]
    allowed = allowed if tolerance is None else tolerance
    least_rank = least_rank if rank is None else rank
    if not parity.map_max_rel <= allowed:
        return (
            f"{precision} maps differ from the trained model's by {parity.map_max_rel:.2e} of their range, "
            f"more than {allowed:g} (run in {parity.execution_precision})"
        )
    if not parity.score_rank_correlation >= least_rank:
        return (
            f"{precision} scores rank {parity.images} images differently from the trained model "
            f"(Spearman {parity.score_rank_correlation:.3f}, at least {least_rank} wanted; "
            f"run in {parity.execution_precision})"
        )
    return None


def check_parity(
    parity: Parity, precision: Precision, tolerance: float | None = None, rank: float | None = None
) -> None:
    """Raise `ParityError` where there is a `shortfall`."""
    if reason := shortfall(parity, precision, tolerance, rank):
        raise ParityError(
            f"{reason}; train longer, try another --precision or more calibration images, or set other limits by "
            "--parity-tolerance and --rank-correlation"
        )


def check_accuracy(
    reference: RawOutputs, exported: RawOutputs, planted: NDArray[np.bool_], allowed: float
) -> tuple[float, float]:
    """Image AUROC of either side on images with (``planted``) and without a planted defect.

    Raises:
        AccuracyDropError: the exported side loses more than ``allowed``, a fraction (0.01 is one point).
    """
    from sklearn.metrics import roc_auc_score

    before, after = (float(roc_auc_score(planted, outputs.scores)) for outputs in (reference, exported))
    if before - after > allowed:
        raise AccuracyDropError(
            f"image AUROC on planted defects falls from {before:.4f} to {after:.4f}, "
            f"more than --accuracy-drop {allowed}"
        )
    return before, after
