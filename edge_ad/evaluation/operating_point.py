"""A bundle's thresholds fitted anew on images from the line, and how tiles' scores are merged: written as a new bundle.

Nothing is trained and no graph changes, so a line that raises false alarms is answered in minutes: with good images it
rejected among ``good``, and with known defects as ``bad`` to see what the new thresholds still find.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_ad.bundle.files import Bundle, write_manifest
from edge_ad.bundle.manifest import Golden, Manifest, Normalisation, Scale, ScoreMerge
from edge_ad.errors import InputError
from edge_ad.evaluation.raw_values import RawValues, summary
from edge_ad.evaluation.thresholds import Statistic
from edge_ad.imaging import PixelFormat, read_image, resize
from edge_ad.progress import Progress, no_progress
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.loading import open_detector
from edge_ad.runtime.session import ExecutionPrecision


def summarise_files(
    detector: Detector,
    paths: Sequence[Path],
    pixel_format: PixelFormat = PixelFormat(),  # noqa: B008 - frozen
    progress: Progress = no_progress,
) -> RawValues:
    """Run ``detector`` on image files, one at a time.

    Raises:
        UnreadableImageError, PixelFormatError: a file cannot be read.
        InferenceError and its kinds: see `Detector.raw`.
    """
    found = []
    for index, path in enumerate(paths):
        image = read_image(path, pixel_format)
        detector.check_proportions((image.shape[0], image.shape[1]))
        raw = detector.raw(resize(image, detector.image_size)[None])
        found.append(summary(raw.scores[0], raw.maps[0], detector.inside))
        progress(index + 1, len(paths), "images")
    return RawValues.of(found)


def rejected(values: RawValues, normalisation: Normalisation) -> int:
    """How many images are anomalous by these thresholds."""
    return int((values.scores >= np.float32(normalisation.score.threshold)).sum())


def fit_operating_point(old: Normalisation, rule: str, good: RawValues, bad: RawValues | None = None) -> Normalisation:
    """``old`` with the thresholds of score and map by ``rule``; what scales tiles and a global model stays.

    Args:
        rule: see `edge_ad.evaluation.thresholds`; of all, ``f1`` alone looks at ``bad``.
        good: values of normal images.
        bad: of defective ones.

    Raises:
        InputError and errors of `ThresholdRule.parse` and `ThresholdRule.fit`.
    """
    score, map_scale = good.scales(rule, bad)
    told = f"{rule} on {len(good.scores)} good images"
    if rule == Statistic.F1 and bad is not None:
        told += f" and {len(bad.scores)} bad ones"
    return replace(old, rule=told, score=score, map=map_scale)


def merged_by(manifest: Manifest, merge: ScoreMerge) -> Manifest:
    """``manifest`` with another way to merge tiles' scores.

    Raises:
        InputError: a global model's scores were made comparable with those of the bundle's own merge.
    """
    if manifest.normalisation.fusion is not None and merge is not manifest.merge.score:
        raise InputError(
            f"the global model is fused with tiles merged by their {manifest.merge.score}; train with --score-merge "
            f"{merge} instead"
        )
    return replace(manifest, merge=replace(manifest.merge, score=merge))


def write_operating_point(bundle: Bundle, merged: Manifest, normalisation: Normalisation, stage: Path) -> Manifest:
    """Write ``bundle`` with other thresholds into ``stage`` and return its manifest. A signature is not taken along.

    Args:
        bundle: the old one; it stays as it is.
        merged: its manifest, or that of `merged_by`. Where the merge is another one, the golden images are scored anew.
        normalisation: see `fit_operating_point`.
        stage: an empty folder, see `staged_bundle`.
    """
    manifest = replace(
        merged, normalisation=normalisation, parity_tolerance=_tolerance(bundle.manifest, normalisation.score)
    )
    if merged.merge != bundle.manifest.merge:
        loosest = max(manifest.parity_tolerance, bundle.manifest.parity_tolerance)  # another merge, another rounding
        manifest = replace(manifest, parity_tolerance=loosest, golden=_scored_anew(bundle, merged))
    for entry in manifest.files:
        (stage / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(entry), stage / entry.path)
    write_manifest(stage, manifest)
    return manifest


def _scored_anew(bundle: Bundle, merged: Manifest) -> tuple[Golden, ...]:
    """The golden images of ``bundle``, scored by ``merged`` in float32 on the CPU, wherever the line runs."""
    with open_detector(bundle.path, merged, precision=ExecutionPrecision.F32) as detector:
        scores = summarise_files(detector, [bundle.file(golden.file) for golden in merged.golden]).scores.tolist()
    scored = zip(merged.golden, scores, strict=True)
    return tuple(replace(golden, raw_score=score, score_tolerance=None) for golden, score in scored)


def _tolerance(old: Manifest, scale: Scale) -> float:
    """The error that ``old`` allows its golden scores, of ``scale`` instead of its own: devices round as they did."""
    before = old.normalisation.score
    return old.parity_tolerance * (before.threshold - before.low) / (scale.threshold - scale.low)
