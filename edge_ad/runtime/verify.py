"""Does a bundle compute on this machine and device what it computed where it was exported? The golden images tell."""

from __future__ import annotations

from dataclasses import dataclass

from edge_ad.bundle.files import Bundle
from edge_ad.bundle.manifest import Golden
from edge_ad.errors import VerificationError
from edge_ad.imaging import read_image
from edge_ad.runtime.detector import Detector


@dataclass(frozen=True)
class Check:
    """One golden image.

    Attributes:
        label: "normal" or "anomalous".
        expected, got: raw image scores, of the exporter and of this device.
        error: their distance in units of ``threshold - low`` of the score scale.
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


def verify_bundle(detector: Detector, bundle: Bundle) -> list[Check]:
    """Run the golden images and compare their raw scores with those recorded at export.

    A score may differ by ``parity_tolerance`` of the way from ``low`` to ``threshold``. The scores were recorded in
    float32 and the exporter widens the tolerance to what it saw in its device's default precision; in a precision it
    did not run (`Manifest.parity` lists them) a failure may be that precision's rounding and not a fault.

    Args:
        detector: made from ``bundle``, with the bundle's own score merge.

    Raises:
        VerificationError: a score differs by more, or the bundle has no golden images.
    """
    manifest = bundle.manifest
    if not manifest.golden:
        raise VerificationError(f"{bundle.path} has no golden images to verify with; export it again")
    checks = [_check(detector, bundle, golden) for golden in manifest.golden]
    failed = [check for check in checks if not check.passed]
    if failed:
        numbers = "; ".join(
            f"{check.label}: expected {check.expected:.6g}, but got {check.got:.6g}, "
            f"off by {check.error:.2g} of the scale (at most {check.tolerance:.2g})"
            for check in failed
        )
        recorded = ", ".join(parity.execution_precision for parity in manifest.parity) or "none"
        raise VerificationError(
            f"on {detector.device} in {detector.precision} (exporter's: {recorded}) golden scores differ: {numbers}; "
            "try --precision f32, or export for this device"
        )
    return checks


def _check(detector: Detector, bundle: Bundle, golden: Golden) -> Check:
    image = read_image(bundle.file(golden.file))
    got = float(detector.raw(image[None]).scores[0])
    scale = bundle.manifest.normalisation.score
    error = abs(got - golden.raw_score) / (scale.threshold - scale.low)
    return Check(golden.label, golden.raw_score, got, error, bundle.manifest.parity_tolerance)
