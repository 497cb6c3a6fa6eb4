from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bundle import edit_manifest, tiny_manifest

import edge_ad
from edge_ad.bundle import files
from edge_ad.bundle.files import Bundle, file_entry, read_bundle
from edge_ad.bundle.manifest import FileEntry, Format, Scale
from edge_ad.errors import ChangedFileError, VerificationError
from edge_ad.imaging import read_image
from edge_ad.records import to_plain
from edge_ad.roi import Roi
from edge_ad.runtime.verify import coarse_map, verify_bundle

Write = Callable[..., Path]


@pytest.mark.parametrize("graph_format", Format)
def test_a_good_bundle_proves_itself(tiny_bundle: Write, graph_format: Format) -> None:
    bundle = read_bundle(tiny_bundle(graph_format=graph_format))
    with edge_ad.load(bundle.path, precision="f32") as detector:
        checks = verify_bundle(detector, bundle)
    assert [check.label for check in checks] == ["normal score", "anomalous score"]
    assert all(check.passed and check.error < 1e-6 and check.tolerance == 0.01 for check in checks)


def with_maps(bundle: Bundle, maps: NDArray[np.float32], tolerance: float) -> Bundle:
    """``bundle`` whose golden images gave ``maps`` (2, H, W)."""
    golden = tuple(
        replace(each, raw_map=tuple(coarse_map(raw_map).tolist()), map_tolerance=tolerance)
        for each, raw_map in zip(bundle.manifest.golden, maps, strict=True)
    )
    return replace(bundle, manifest=replace(bundle.manifest, golden=golden))


def test_a_coarse_map_is_the_means_of_areas() -> None:
    raw_map = np.random.default_rng(0).normal(size=(32, 48)).astype(np.float32)
    means = raw_map.reshape(8, 4, 8, 6).mean((1, 3)).ravel()
    np.testing.assert_allclose(coarse_map(raw_map), means, rtol=1e-5, atol=1e-6)


def test_a_map_at_another_place_is_found_though_its_score_is_right(tiny_bundle: Write) -> None:
    bundle = read_bundle(tiny_bundle())
    images = [read_image(bundle.file(golden.file)) for golden in bundle.manifest.golden]
    with edge_ad.load(bundle.path, precision="f32") as detector:
        maps = np.concatenate([detector.raw(image[None]).maps for image in images])
        scale = bundle.manifest.normalisation.map
        checks = verify_bundle(detector, with_maps(bundle, maps, 0.04))
        assert [check.label for check in checks][1::2] == ["normal map", "anomalous map"]
        assert all(check.error < 1e-6 for check in checks)
        assert checks[1].tolerance == pytest.approx(0.04 / (scale.threshold - scale.low))
        verify_bundle(detector, with_maps(bundle, maps + 0.039, 0.04))
        with pytest.raises(VerificationError, match=r"normal map: .* off by 0.051 of the scale \(at most 0.05"):
            verify_bundle(detector, with_maps(bundle, maps + 0.041, 0.04))
        with pytest.raises(VerificationError, match="differ: anomalous map: expected"):
            verify_bundle(detector, with_maps(bundle, np.stack([maps[0], maps[1, :, ::-1]]), 0.04))


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
            match=r"on CPU in f32 \(exporter's: f32\) golden images differ: anomalous score: expected 0.9035, "
            r"but got 0.8925, off by 0.011 of the scale \(at most 0.01\)",
        ):
            verify_bundle(detector, _shifted(bundle, 0.011))


def test_each_score_has_a_tolerance_of_its_own(tiny_bundle: Write) -> None:
    """Raw, so that another threshold does not change it; the manifest's own is for images without one."""
    bundle = _shifted(read_bundle(tiny_bundle()), 0.05)
    normal, anomalous = bundle.manifest.golden
    scale = Scale(0.2, 2.2)  # half as fine as before
    for own, passes in ((0.06, True), (0.04, False)):
        golden = (normal, replace(anomalous, score_tolerance=own))
        norm = replace(bundle.manifest.normalisation, score=scale)
        manifest = replace(bundle.manifest, golden=golden, normalisation=norm, parity_tolerance=0.001)
        with edge_ad.load(bundle.path, precision="f32") as detector:
            if passes:
                assert verify_bundle(detector, replace(bundle, manifest=manifest))[1].tolerance == pytest.approx(0.03)
            else:
                with pytest.raises(VerificationError, match=r"off by 0\.025 of the scale \(at most 0\.02\)"):
                    verify_bundle(detector, replace(bundle, manifest=manifest))


def test_what_is_advised_can_be_done(tiny_bundle: Write) -> None:
    bundle = _shifted(read_bundle(tiny_bundle()), 1.0)
    with edge_ad.load(bundle.path, precision="f32") as detector:
        with pytest.raises(VerificationError, match="; run it on another device, such as CPU, or update this one's"):
            verify_bundle(detector, bundle)
        for session in detector.heads.values():
            session.precision = "bf16"
        with pytest.raises(VerificationError, match="; run it with --precision f32, or on another device"):
            verify_bundle(detector, bundle)


def test_nothing_to_verify_with(tiny_bundle: Write) -> None:
    bundle = read_bundle(tiny_bundle())
    with edge_ad.load(bundle.path) as detector, pytest.raises(VerificationError, match="has no golden images"):
        verify_bundle(detector, replace(bundle, manifest=tiny_manifest()))


def test_what_was_hashed_is_what_is_looked_at(tiny_bundle: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A region of interest that is another one by the time it would be read again; a golden image likewise."""
    inside = np.zeros(tiny_manifest().setup.image_size, bool)
    inside[:, :40] = True
    path = tiny_bundle()
    (path / "roi.png").write_bytes(Roi(inside).png())
    entry = file_entry(path, "roi.png")
    edit_manifest(path, lambda manifest: manifest.update(roi=to_plain(entry)))
    check_sum = files._check_sum

    def check_and_swap(root: Path, checked: FileEntry, sha256: str) -> None:
        check_sum(root, checked, sha256)
        if checked == entry:
            (root / checked.path).write_bytes(Roi(~inside).png())

    monkeypatch.setattr(files, "_check_sum", check_and_swap)
    with edge_ad.load(path) as detector:
        assert detector.inside is not None
        np.testing.assert_array_equal(detector.inside, inside)
        (path / "roi.png").write_bytes(Roi(inside).png())
        bundle = read_bundle(path)
        golden = bundle.file(bundle.manifest.golden[0].file)
        golden.write_bytes(golden.read_bytes() + b"\0")
        with pytest.raises(ChangedFileError, match=r"golden/normal\.png"):
            verify_bundle(detector, bundle)
