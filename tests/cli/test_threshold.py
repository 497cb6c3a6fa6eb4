"""New thresholds for a bundle: fitted on the images given, told, and written beside the old ones."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import edit_manifest, expected_tile, some_image, tiny_manifest, tiny_setup
from tiny_depth import write_deep_png

import edge_ad
from edge_ad.bundle.files import read_bundle, write_manifest
from edge_ad.bundle.manifest import Fusion, Manifest, Scale, ScoreMerge
from edge_ad.errors import InputError
from edge_ad.evaluation import operating_point
from edge_ad.evaluation.operating_point import merged_by
from edge_ad.imaging import write_png
from edge_ad.runtime import loading
from edge_ad.runtime.loading import open_detector

SETUP = tiny_setup()
COLOURS = (0, 40, 80, 120)  # of the red channel beside 100 in the others


def picture(red: int) -> np.ndarray:
    image = np.full((*SETUP.image_size, 3), 100, np.uint8)
    image[:, :, 0] = red
    return image


def tile_scores(image: np.ndarray) -> np.ndarray:
    tiles = SETUP.grid.crop(image)
    return np.array([expected_tile(tile, at)[1] for at, tile in zip(SETUP.grid.locations, tiles, strict=True)])


def allowed_error(manifest: Manifest) -> float:
    scale = manifest.normalisation.score
    return manifest.parity_tolerance * (scale.threshold - scale.low)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    for red in COLOURS:
        write_png(tmp_path / "good" / f"{red}.png", picture(red))
    return tmp_path / "good"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    write_png(tmp_path / "bad" / "noise.png", some_image(SETUP))
    return tmp_path / "bad"


def test_thresholds_by_the_rule(run, bundle: Path, good: Path, bad: Path, tmp_path: Path):
    output = tmp_path / "new.edgead"
    scores = np.array([tile_scores(picture(red)).mean() for red in COLOURS])
    code, out, err = run("threshold", bundle, "--good", good, "--bad", bad, "--rule", "sigma:2", "-o", output)
    assert (code, err) == (0, "")
    found, old = read_bundle(output).manifest, read_bundle(bundle).manifest
    assert found.normalisation.score.threshold == pytest.approx(scores.mean() + 2 * scores.std(), rel=1e-5)
    assert found.normalisation.rule == "sigma:2 on 4 good images"
    assert allowed_error(found) == pytest.approx(allowed_error(old))  # a threshold does not change how devices round
    kept = {"normalisation": old.normalisation, "parity_tolerance": old.parity_tolerance}
    assert replace(found, **kept) == old  # nothing else changed
    rejected = int((scores >= old.normalisation.score.threshold).sum())
    assert f"good rejected  {rejected} of 4" in out
    assert out.splitlines()[-1].split() == ["bad", "rejected", "1", "of", "1", "1", "of", "1"]
    with edge_ad.load(output, self_test=True) as detector:
        assert detector(picture(90), color="rgb").pred_label is False
    assert run("threshold", bundle, "--good", good, "-o", output).code == 2
    assert run("threshold", bundle, "--good", good, "--overwrite", "-o", output).code == 0


def test_files_are_read_as_declared_or_as_in_training(run, bundle: Path, tmp_path: Path):
    """Twelve bits and alpha: thresholds and verdicts are those of the opaque 8-bit images that such files show."""
    corner = np.zeros(SETUP.image_size, bool)
    corner[:5, :7] = True
    for index, image in enumerate([*map(picture, COLOURS), some_image(SETUP)]):
        name = f"{'good' if index < len(COLOURS) else 'bad'}/{index}.png"
        write_deep_png(tmp_path / "deep" / name, image, corner)
        image[corner] = 255
        write_png(tmp_path / "plain" / name, image)
    deep_bundle = shutil.copytree(bundle, tmp_path / "deep.edgead")
    edit_manifest(deep_bundle, lambda manifest: manifest["input"].update(bits=12, alpha="white"))
    told, fitted = [], []
    for kind, folder, options in (
        ("plain", bundle, ()),
        ("deep", bundle, ("--bits", 12, "--alpha", "white")),
        ("deep", deep_bundle, ()),
    ):
        images = ("--good", tmp_path / kind / "good", "--bad", tmp_path / kind / "bad")
        output = tmp_path / f"new-{len(told)}"
        outcome = run("threshold", folder, *images, *options, "-o", output)
        assert outcome.code == 0, outcome.err
        told.append(outcome.out)
        fitted.append(read_bundle(output).manifest.normalisation)
    assert fitted[0] == fitted[1] == fitted[2]
    assert told[0] == told[1] == told[2]


def test_images_of_other_proportions_are_told(run, bundle: Path, good: Path, tmp_path: Path, caplog):
    manifest = read_bundle(bundle).manifest
    write_manifest(bundle, replace(manifest, input=replace(manifest.input, proportions=(1.0, 1.0))))
    for path in good.iterdir():
        write_png(path, np.zeros((40, 80, 3), np.uint8))
    assert run("threshold", bundle, "--good", good, "-o", tmp_path / "new.edgead").code == 0
    (told,) = caplog.messages
    assert told.startswith("frames of 40x80 are 2.00 times as wide as high, but the training images were 1.00 times")


def test_overwrite_replaces_bundles_alone(run, bundle: Path, good: Path, tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for name, message in (("precious", "holds no manifest.json"), ("file", "is not a folder")):
        code, _, err = run("threshold", bundle, "--good", good, "--overwrite", "-o", tmp_path / name)
        assert (code, message in err) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_f1_needs_defects(run, bundle: Path, good: Path, bad: Path, tmp_path: Path):
    code, _, err = run("threshold", bundle, "--good", good, "--rule", "f1", "-o", tmp_path / "new")
    assert (code, "--rule f1 needs defective images too; give --bad" in err) == (2, True)
    assert not (tmp_path / "new").exists()
    assert run("threshold", bundle, "--good", good, "--bad", bad, "--rule", "f1", "-o", tmp_path / "new").code == 0
    scale = read_bundle(tmp_path / "new").manifest.normalisation.score
    highest = max(tile_scores(picture(red)).mean() for red in COLOURS)
    assert allowed_error(read_bundle(tmp_path / "new").manifest) == pytest.approx(
        allowed_error(read_bundle(bundle).manifest)
    )
    assert scale.threshold == pytest.approx((highest + tile_scores(some_image(SETUP)).mean()) / 2, rel=1e-5)


def test_too_few_good_images_are_told_before_any_is_inspected(
    run, bundle: Path, good: Path, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edge_ad.evaluation.operating_point.summarise_files", lambda *_: pytest.fail("inspected"))
    images = ("--good", good, "--bad", bad, "--rule", "quantile:0.99")
    code, _, err = run("threshold", bundle, *images, "-o", tmp_path / "new")
    assert (code, "needs at least 100" in err) == (2, True)


def test_another_merge_scores_the_golden_images_anew(run, bundle: Path, good: Path, tmp_path: Path):
    output, old = tmp_path / "new", read_bundle(bundle).manifest
    strict = tuple(replace(golden, score_tolerance=1e-9) for golden in old.golden)  # of the old merge
    write_manifest(bundle, replace(old, golden=strict))
    out = run("threshold", bundle, "--good", good, "--rule", "max", "--score-merge", "max", "-o", output).out
    assert out.splitlines()[-1].split() == ["good", "rejected", "-", "0", "of", "4"]
    found = read_bundle(output)
    assert found.manifest.merge.score is ScoreMerge.MAX
    assert [golden.score_tolerance for golden in found.manifest.golden] == [None, None]
    assert found.manifest.normalisation.score.threshold == pytest.approx(tile_scores(picture(0)).max(), rel=1e-5)
    with edge_ad.load(output, self_test=True, precision="f32") as detector:
        assert detector.raw(picture(0)[None]).scores[0] == pytest.approx(tile_scores(picture(0)).max(), rel=1e-5)


def test_thresholds_are_fitted_where_the_line_runs(run, bundle: Path, good: Path, tmp_path: Path, monkeypatch):
    """On the device and in the precision asked for; golden images of another merge in float32, on the CPU."""
    opened = []

    def noted(path, manifest, device="CPU", *, precision):
        opened.append((device, str(precision)))
        return open_detector(path, manifest, precision=precision)

    for module in (loading, operating_point):
        monkeypatch.setattr(module, "open_detector", noted)
    assert run("threshold", bundle, "--good", good, "-o", tmp_path / "default").code == 0
    assert run("threshold", bundle, "--good", good, "-d", "AUTO", "--precision", "f32", "-o", tmp_path / "b").code == 0
    assert opened == [("CPU", "auto"), ("AUTO", "f32")]
    assert run("threshold", bundle, "--good", good, "--score-merge", "max", "-o", tmp_path / "max").code == 0
    assert opened[2:] == [("CPU", "auto"), ("CPU", "f32")]


def test_an_output_that_exists_is_told_before_the_work(run, bundle: Path, good: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(loading, "open_detector", lambda *_, **__: pytest.fail("worked first"))
    (tmp_path / "new").mkdir()
    code, out, err = run("threshold", bundle, "--good", good, "-o", tmp_path / "new")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path / 'new'} exists; choose another -o, or pass --overwrite\n"


def test_a_golden_score_near_the_new_threshold_is_no_fault(run, bundle: Path, good: Path, tmp_path: Path):
    """Tolerances are raw and stay: a device that rounded it to the other side of the new threshold rounds as before."""
    found = read_bundle(bundle)
    normal, anomalous = found.manifest.golden
    golden = (
        replace(normal, score_tolerance=0.01),
        replace(anomalous, raw_score=anomalous.raw_score - 0.02, score_tolerance=0.03),
    )
    write_manifest(bundle, replace(found.manifest, golden=golden, parity_tolerance=0.0))
    write_png(good / "nearly.png", some_image(SETUP))  # the anomalous golden image
    assert run("threshold", bundle, "--good", good, "--rule", "max", "-o", tmp_path / "new").code == 0
    made = read_bundle(tmp_path / "new").manifest
    assert made.golden == golden
    assert golden[1].raw_score < made.normalisation.score.threshold == pytest.approx(anomalous.raw_score, rel=1e-5)
    edge_ad.load(tmp_path / "new", self_test=True).close()


def test_a_fused_bundle_keeps_its_merge():
    scale = Scale(0.0, 1.0)
    manifest = tiny_manifest()
    fused = replace(manifest.normalisation, fusion=Fusion(scale, scale, scale, scale))
    with pytest.raises(InputError, match="train with --score-merge max instead"):
        merged_by(replace(manifest, normalisation=fused), ScoreMerge.MAX)


def test_a_signature_is_not_taken_along(run, bundle: Path, good: Path, tmp_path: Path):
    (bundle / "manifest.sig").write_bytes(b"of the old manifest")
    code, _, err = run("threshold", bundle, "--good", good, "-o", tmp_path / "new")
    assert (code, err) == (0, f"{tmp_path / 'new'} is not signed: edge-ad sign\n")
    assert not (tmp_path / "new" / "manifest.sig").exists()
    assert run("-q", "threshold", bundle, "--good", good, "-o", tmp_path / "quiet").err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "sigma:0"], "unknown threshold rule 'sigma:0'"),
        (["--rule", "quantile:0.9"], "needs at least 10"),
        (["--good", "nowhere"], "nowhere not found"),
    ],
)
def test_bad_input(run, bundle: Path, good: Path, tmp_path: Path, arguments: list[str], message: str):
    code, out, err = run("threshold", bundle, "--good", good, *arguments, "-o", tmp_path / "new")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "new").exists()
