"""Does a bundle compute on this machine and device what it computed where it was exported? The golden images tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.files import Bundle, read_entry
from edge_ad.bundle.manifest import GOLDEN_CELLS, Golden
from edge_ad.errors import VerificationError
from edge_ad.imaging import decode_image, resize
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.session import ExecutionPrecision


@dataclass(frozen=True)
class Check:
    """What one golden image gave: its score, or its map where that is furthest off.

    Attributes:
        label: "normal score", "anomalous map".
        expected, got: raw values, of the exporter and of this device.
        error: their distance in units of ``threshold - low`` of the scale of scores, or of maps.
        tolerance: largest error allowed.
    """

    label: str
    expected: float
    got: float
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False too where the error is not a number."""
        return self.error <= self.tolerance


def coarse_map(raw_map: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of ``raw_map`` (H, W) over `GOLDEN_CELLS` x `GOLDEN_CELLS` areas, row by row: (`GOLDEN_CELLS` ** 2,)."""
    return resize(raw_map, (GOLDEN_CELLS, GOLDEN_CELLS)).ravel()


def verify_bundle(detector: Detector, bundle: Bundle) -> list[Check]:
    """Run the golden images and compare their raw scores and maps with those recorded at export.

    A score may differ by the image's ``score_tolerance``, a map's means by its ``map_tolerance``. They were recorded in
    float32, and the exporter widens tolerances to what it saw in its device's default precision; in a precision it did
    not run (`Manifest.parity` lists them) a failure may be that precision's rounding and not a fault.

    The exporter lets no score reach the threshold it wrote (but for one that lay there), so a device that turns a
    golden verdict fails. `edge-ad threshold` moves the threshold and keeps tolerances, for devices round as before:
    a golden score that lies within its tolerance of the new one may then be on either side of it.

    Bundles of before verify by less: scores by ``parity_tolerance`` of the way from ``low`` to ``threshold``, which
    may reach beyond it, and no maps.

    Args:
        detector: made from ``bundle``, with the bundle's own score merge.

    Raises:
        VerificationError: a score or a map differs by more, or the bundle has no golden images.
        MissingFileError, ChangedFileError: a golden image is not the one that the manifest names.
    """
    manifest = bundle.manifest
    if not manifest.golden:
        raise VerificationError(f"{bundle.path} has no golden images to verify with; export it again")
    checks = [check for golden in manifest.golden for check in _checks(detector, bundle, golden)]
    failed = [check for check in checks if not check.passed]
    if failed:
        numbers = "; ".join(
            f"{check.label}: expected {check.expected:.6g}, but got {check.got:.6g}, "
            f"off by {check.error:.2g} of the scale (at most {check.tolerance:.2g})"
            for check in failed
        )
        recorded = ", ".join(parity.execution_precision for parity in manifest.parity) or "none"
        raise VerificationError(
            f"on {detector.device} in {detector.precision} (exporter's: {recorded}) golden images differ: {numbers}; "
            f"{_remedy(detector)}"
        )
    return checks


def _remedy(detector: Detector) -> str:
    if detector.precision == ExecutionPrecision.F32:
        return "run it on another device, such as CPU, or update this one's driver and engine"
    return "run it with --precision f32, or on another device, such as CPU"


def _checks(detector: Detector, bundle: Bundle, golden: Golden) -> Iterator[Check]:
    norm = bundle.manifest.normalisation
    content = read_entry(bundle.path, golden.file).tobytes()
    raw = detector.raw(decode_image(content, bundle.file(golden.file))[None])
    got, unit = float(raw.scores[0]), norm.score.threshold - norm.score.low
    own = golden.score_tolerance
    tolerance = bundle.manifest.parity_tolerance if own is None else own / unit
    yield Check(f"{golden.label} score", golden.raw_score, got, abs(got - golden.raw_score) / unit, tolerance)
    if golden.raw_map:
        means, unit = coarse_map(raw.maps[0]), norm.map.threshold - norm.map.low
        errors = np.abs(means - golden.raw_map)
        worst = int(errors.argmax())
        yield Check(
            f"{golden.label} map",
            golden.raw_map[worst],
            float(means[worst]),
            float(errors[worst]) / unit,
            golden.map_tolerance / unit,
        )
