from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import tiny_manifest

import edge_ad
from edge_ad.bundle.files import Bundle, read_bundle
from edge_ad.bundle.manifest import Format
from edge_ad.errors import VerificationError
from edge_ad.runtime.verify import verify_bundle

Write = Callable[..., Path]


@pytest.mark.parametrize("graph_format", Format)
def test_a_good_bundle_proves_itself(tiny_bundle: Write, graph_format: Format) -> None:
    bundle = read_bundle(tiny_bundle(graph_format=graph_format))
    with edge_ad.load(bundle.path, precision="f32") as detector:
        checks = verify_bundle(detector, bundle)
    assert [check.label for check in checks] == ["normal", "anomalous"]
    assert all(check.passed and check.error < 1e-6 and check.tolerance == 0.01 for check in checks)


def _shifted(bundle: Bundle, by: float) -> Bundle:
    normal, anomalous = bundle.manifest.golden
    golden = (normal, replace(anomalous, raw_score=anomalous.raw_score + by))
    return replace(bundle, manifest=replace(bundle.manifest, golden=golden))


def test_the_tolerance_is_of_the_scale(tiny_bundle: Write) -> None:
    """Tolerance 0.01 of threshold - low = 1.0: 0.009 passes and 0.011 does not."""
    bundle = read_bundle(tiny_bundle())
    with edge_ad.load(bundle.path, precision="f32") as detector:
        assert verify_bundle(detector, _shifted(bundle, 0.009))[1].error == pytest.approx(0.009, rel=1e-3)
        with pytest.raises(
            VerificationError,
            match=r"on CPU in f32 \(exporter's: f32\) golden scores differ: anomalous: expected 0.9035, "
            r"but got 0.8925, off by 0.011 of the scale \(at most 0.01\)",
        ):
            verify_bundle(detector, _shifted(bundle, 0.011))


def test_nothing_to_verify_with(tiny_bundle: Write) -> None:
    bundle = read_bundle(tiny_bundle())
    with edge_ad.load(bundle.path) as detector, pytest.raises(VerificationError, match="has no golden images"):
        verify_bundle(detector, replace(bundle, manifest=tiny_manifest()))
