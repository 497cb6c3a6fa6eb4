"""From a run to a bundle, for every format and precision: whole, proved, like the run, or not there at all."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from file_system import file_size_limit
from tiny_run import BACKBONE, scene, scene_images, tile_setup, tiny_model, tiny_run

import edge_ad
from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import Format, NormalisationStage, Precision, Role, Scale
from edge_ad.errors import AccuracyDropError, IncompleteRunError, OutputExistsError, OutputWriteError, ParityError
from edge_ad.evaluation.evaluate import Predictions, predict
from edge_ad.exporters import export
from edge_ad.exporters.export import PARITY_IMAGES, ExportOptions, export_run
from edge_ad.exporters.parity import TOLERANCES, compare
from edge_ad.imaging import read_image
from edge_ad.methods import create_model
from edge_ad.methods.padim import REGULARISATION, SMOOTHING_SIGMA_PX
from edge_ad.methods.tile_model import TileStream, location_seed
from edge_ad.progress import no_progress
from edge_ad.runtime.loading import open_detector
from edge_ad.runtime.onnxruntime_session import ARITHMETIC
from edge_ad.runtime.openvino_program import Constants
from edge_ad.runtime.residency import loaded_bytes
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.runtime.sessions import open_session
from edge_ad.runtime.verify import verify_bundle
from edge_ad.setups import Sharing
from edge_ad.tiling import WHOLE, Location, TileGrid
from edge_ad.training.calibration import fit_normalisation
from edge_ad.training.run_detector import RAW, run_detector
from edge_ad.training.trainer import train

SETUP = tile_setup((32, 96), (32, 48))
KINDS = [(graph_format, precision) for graph_format in Format for precision in Precision]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    # Of random networks some rank 16 images as they were trained in int8 too, with 0.99, others do not
    return tiny_run(tmp_path_factory.mktemp("trained") / "run", SETUP, weights_seed=1)


@pytest.fixture(scope="module")
def bundle_of(trained, tmp_path_factory):
    """The bundle of a format and precision, exported when it is first asked for. Not to be changed."""
    folder, made = tmp_path_factory.mktemp("bundles"), {}

    def bundle(kind):
        if kind not in made:
            made[kind] = folder / "-".join(kind)
            export_run(*trained, made[kind], ExportOptions(*kind))
        return made[kind]

    return bundle


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_bundle_is_whole_and_proves_itself(kind, bundle_of, trained):
    _, images = trained
    bundle = read_bundle(bundle_of(kind))
    manifest = bundle.manifest
    assert (manifest.format, manifest.precision, manifest.setup) == (*kind, SETUP)
    assert manifest.provenance.data_digest == images.source.digest
    for precision in ("auto", "f32"):
        with edge_ad.load(bundle.path, precision=precision) as detector:
            checks = verify_bundle(detector, bundle)
            assert [check.label.split()[1] for check in checks] == ["score", "map"] * 2
            assert all(check.passed for check in checks)
    normal, anomalous = manifest.golden
    assert (normal.label, anomalous.label) == ("normal", "anomalous")
    assert normal.raw_score < anomalous.raw_score
    assert max(anomalous.raw_map) > max(normal.raw_map)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_one_extractor_and_a_head_per_location(kind, bundle_of):
    graph_format, precision = kind
    manifest = read_bundle(bundle_of(kind)).manifest
    shared, *heads = manifest.graphs
    in_int8 = kind == (Format.OPENVINO, Precision.INT8)  # PaDiM's product; in int8 for ONNX heads stay in float
    stored = Precision.FP16 if precision is Precision.INT8 and not in_int8 else precision
    assert (shared.role, shared.location, shared.precision, shared.keep_f32) == (Role.SHARED, None, precision, False)
    assert [graph.location for graph in heads] == [(0, 0), (0, 1)]
    # PaDiM bears less than f32, but beside a product in int8 gains nothing by it
    assert {(graph.role, graph.precision, graph.keep_f32) for graph in heads} == {(Role.HEAD, stored, in_int8)}
    suffixes = ["xml", "bin"] if graph_format is Format.OPENVINO else ["onnx"]
    for graph, name in zip(manifest.graphs, ("shared", "r00_c00", "r00_c01"), strict=True):
        assert [file.path for file in graph.files] == [f"graphs/{name}.{suffix}" for suffix in suffixes]
        assert graph.parameters > 0
        assert graph.flops > 0
    size = {role: [sum(f.size_bytes for f in g.files) for g in manifest.graphs if g.role is role] for role in Role}
    assert max(size[Role.HEAD]) < min(size[Role.SHARED])  # no second backbone


def arithmetic_of(bundle):
    """By role: what the metadata of the graphs say that their float parts compute in."""
    found = {role: set() for role in Role}
    for graph in bundle.manifest.graphs:
        metadata = onnx.load(bundle.file(graph.files[0])).metadata_props
        found[graph.role].add({entry.key: entry.value for entry in metadata}.get(ARITHMETIC))
    return found


@pytest.mark.parametrize("precision", Precision)
def test_only_fp16_graphs_compute_in_half_precision(precision, bundle_of):
    """ONNX Runtime reads it from the file: nothing else tells a GPU."""
    expected = {"f16" if precision is Precision.FP16 else None}
    found = arithmetic_of(read_bundle(bundle_of((Format.ONNX, precision))))
    assert found == {Role.SHARED: expected, Role.HEAD: expected}


def test_a_head_that_keeps_f32_is_stored_in_half_precision_alone(tmp_path):
    setup = tile_setup((32, 48), (32, 48))
    images = scene_images(setup)
    model = create_model("patchcore", setup.tile_size, backbone=BACKBONE, weights="none", coreset_ratio=0.25)
    run = train(model, setup, images, tmp_path / "run", seed=0)
    manifest = export_run(run, images, tmp_path / "bundle", ExportOptions(Format.ONNX, Precision.FP16))
    assert [(graph.role, graph.precision, graph.keep_f32) for graph in manifest.graphs] == [
        (Role.SHARED, Precision.FP16, False),
        (Role.HEAD, Precision.FP16, True),
    ]
    assert arithmetic_of(read_bundle(tmp_path / "bundle")) == {Role.SHARED: {"f16"}, Role.HEAD: {None}}


# By hand: scores of one image, of the exact engine first; on a scale 4 wide
@pytest.mark.parametrize(
    ("scores", "tolerance"),
    [
        ([[1.0, 2.0]], 0.02 * 4),  # one precision: nothing moved
        ([[1.0, 2.0], [1.0, 2.01]], 0.02 * 4),  # 2 * 0.01 is less
        ([[1.0, 2.0], [1.2, 1.5]], 2 * 0.5),
        ([[1.0, 2.0], [1.2, 2.0], [0.7, 2.0]], 2 * 0.3),
    ],
)
def test_verification_allows_twice_what_a_lesser_precision_moved(scores, tolerance):
    assert export._tolerance([np.array(values) for values in scores], Scale(0.5, 4.5)) == pytest.approx(tolerance)


def test_golden_scores_may_not_round_over_the_threshold(tmp_path):
    """The plainest of either kind in every precision; each by what moved itself, and its way to the threshold."""
    probes, maps = scene(5, (16, 16)), np.zeros((5, 16, 16), np.float32)
    exact = Predictions(np.array([0.6, 0.2, 0.1, 3.0, 1.9], np.float32), maps, 0.0)
    lesser = Predictions(np.array([0.6, 0.3, 0.7, 0.9, 1.4], np.float32), maps, 0.0)
    norm = replace(RAW, score=Scale(0.0, 1.0))
    normal, anomalous = export._golden(tmp_path, probes, [exact, lesser], 3, norm)
    assert (normal.raw_score, anomalous.raw_score) == (pytest.approx(0.2), pytest.approx(1.9))
    assert (normal.score_tolerance, anomalous.score_tolerance) == (pytest.approx(0.2), pytest.approx(0.9))
    assert read_image(tmp_path / normal.file.path).tolist() == probes[1].tolist()


def test_a_golden_verdict_that_this_device_turns_is_told(tmp_path, caplog):
    probes, maps = scene(4, (16, 16)), np.zeros((4, 16, 16), np.float32)
    exact = Predictions(np.array([0.9, 0.95, 3.0, 3.0], np.float32), maps, 0.0)
    lesser = Predictions(np.array([1.2, 1.3, 3.5, 3.5], np.float32), maps, 0.0)
    normal, _ = export._golden(tmp_path, probes, [exact, lesser], 2, replace(RAW, score=Scale(0.0, 1.0)))
    assert normal.score_tolerance == pytest.approx(0.3)  # as here, and no more
    (record,) = caplog.records
    assert "the clearest normal image of 2 lies on either side of the threshold" in record.getMessage()


def on_a_device_of(default, monkeypatch):
    """Export as on one that executes in ``default`` unless it is asked for another precision."""

    def opened(*arguments, precision):
        detector = open_detector(*arguments, precision=precision)
        if precision is ExecutionPrecision.AUTO:
            for session in detector.sessions:
                session.precision = default
        return detector

    monkeypatch.setattr(export, "open_detector", opened)


def test_a_default_of_f32_is_compared_once(trained, tmp_path, monkeypatch):
    on_a_device_of("f32", monkeypatch)
    ran = []
    monkeypatch.setattr(export, "predict", lambda *given: ran.append(given) or predict(*given))
    manifest = export_run(*trained, tmp_path / "bundle", FP16)
    assert [parity.execution_precision for parity in manifest.parity] == ["f32"]
    assert len(ran) == 2  # torch, and the bundle in f32


def test_a_lesser_precision_that_ranks_otherwise_is_told_and_not_refused(trained, tmp_path, monkeypatch, caplog):
    def compared(*outputs, execution_precision, **others):
        """As where bf16 is borne badly."""
        found = compare(*outputs, execution_precision=execution_precision, **others)
        return replace(found, score_rank_correlation=0.754) if execution_precision == "bf16" else found

    on_a_device_of("bf16", monkeypatch)
    monkeypatch.setattr(export, "compare", compared)
    manifest = export_run(*trained, tmp_path / "bundle", FP16)
    assert [parity.execution_precision for parity in manifest.parity] == ["f32", "bf16"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "warning: fp16 scores rank 16 images differently from the trained model (Spearman 0.754, at least 0.9 wanted; "
        "run in bf16), which is this device's default: run the bundle with --precision f32, that is "
        'edge_ad.load(..., precision="f32")'
    ]


@pytest.mark.parametrize("stage", [NormalisationStage.IMAGE, NormalisationStage.TILE])
def test_labels_flip_by_the_threshold_of_either_side(stage, trained, tmp_path, monkeypatch):
    """A run whose scores are lower, and its threshold by as much, has the bundle's verdicts.

    Where tiles are scaled before they are merged, the bundle's scales are used on both sides, and its threshold.
    """
    run, images = trained
    run = replace(run, settings=replace(run.settings, normalisation_stage=stage))
    normalisation, seen = run.normalisation(), []
    lower, score = 100.0, normalisation.score
    normalisation = replace(normalisation, score=Scale(score.low - lower, score.threshold - lower))
    monkeypatch.setattr(type(run), "normalisation", lambda self: normalisation)

    def compared(reference, exported, *args, **options):
        seen.append(exported.scores)
        if stage is NormalisationStage.IMAGE:
            reference = replace(reference, scores=reference.scores - lower)
        return replace(compare(reference, exported, *args, **options), score_rank_correlation=1.0)  # but for near ties

    monkeypatch.setattr(export, "compare", compared)
    manifest = export_run(run, images, tmp_path / "bundle", ExportOptions(Format.OPENVINO, Precision.FP32))
    assert manifest.parity[0].label_flips == 0
    assert len(set(seen[0] >= manifest.normalisation.score.threshold)) == 2  # some are flagged, some are not
    assert manifest.normalisation.score.threshold - normalisation.score.threshold > np.ptp(seen[0])


@pytest.mark.parametrize("precision", Precision)
def test_heads_share_one_compiled_graph(precision, bundle_of):
    with edge_ad.load(bundle_of((Format.OPENVINO, precision))) as detector:
        first, *others = detector.heads.values()
        assert first.shared is not None
        assert all(head.shared is first.shared for head in others)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_parity_is_reported_in_every_precision_that_ran(kind, bundle_of):
    manifest = read_bundle(bundle_of(kind)).manifest
    assert manifest.parity[0].execution_precision == "f32"
    with edge_ad.load(bundle_of(kind)) as detector:
        assert detector.precision in {parity.execution_precision for parity in manifest.parity}
    assert {parity.images for parity in manifest.parity} == {PARITY_IMAGES}
    allowed, rank = TOLERANCES[kind[1]]
    assert manifest.parity[0].map_max_rel <= allowed
    assert manifest.parity[0].score_rank_correlation >= rank


# Of the range of the torch run's maps; see test_graphs.py
@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP32, 1e-4), (Precision.FP16, 1e-2)])
@pytest.mark.parametrize("graph_format", Format)
def test_a_bundle_computes_what_the_run_computes(graph_format, precision, tolerance, bundle_of, trained):
    run, _ = trained
    images = np.concatenate([scene(2, SETUP.image_size, seed=11), 255 - scene(2, SETUP.image_size, seed=12)])
    with run_detector(run) as torch_side, edge_ad.load(bundle_of((graph_format, precision)), precision="f32") as here:
        for image in images:
            expected, got = torch_side.raw(image[None]), here.raw(image[None])
            span = np.ptp(expected.maps)
            assert np.abs(got.maps - expected.maps).max() < tolerance * span
            assert np.abs(got.tile_scores - expected.tile_scores).max() < tolerance * span
            assert np.abs(got.scores - expected.scores).max() < tolerance * span


@pytest.mark.parametrize("graph_format", Format)
def test_int8_heads_are_fitted_on_quantised_features(graph_format, bundle_of, trained):
    """The textbook's distance in float64, mean and covariance over what the bundle's own extractor gives."""
    _, images = trained
    bundle = read_bundle(bundle_of((graph_format, Precision.INT8)))
    path = bundle.file(bundle.manifest.shared.files[0])
    session = open_session(path, graph_format, "CPU", precision=ExecutionPrecision.F32, batch_size=1)

    def embed(tile):
        return np.array(session.fetch(session.run({"image": np.ascontiguousarray(tile[None])})["embedding"]))[0]

    probe = 255 - images.held_out[0]
    with edge_ad.load(bundle.path, precision="f32") as detector:
        got = {loc: (float(s[0]), m[0].copy()) for loc, s, m in detector.tiles(probe[None])}
    for location in SETUP.model_locations:
        rows, cols = SETUP.grid.window(location)
        x = np.stack([embed(image[rows, cols]) for image in images.fit]).astype(np.float64)  # (n, h', w', d)
        y = embed(probe[rows, cols]) - x.mean(0)
        distance = np.empty(y.shape[:2])
        for i, j in np.ndindex(*distance.shape):
            covariance = np.cov(x[:, i, j].T) + REGULARISATION * np.eye(x.shape[3])
            distance[i, j] = np.sqrt(y[i, j] @ np.linalg.inv(covariance) @ y[i, j])
        upsampled = F.interpolate(torch.from_numpy(distance)[None, None], size=SETUP.tile_size, mode="bilinear")
        expected = scipy.ndimage.gaussian_filter(upsampled[0, 0].numpy(), SMOOTHING_SIGMA_PX)
        score, anomaly_map = got[location]
        # Heads are stored in half precision
        np.testing.assert_allclose(anomaly_map, expected, rtol=0, atol=1e-2 * np.ptp(expected))
        assert score == pytest.approx(expected.max(), abs=1e-2 * np.ptp(expected))
    session.close()


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    """A complete run of PatchCore, one tile, and its training images."""
    setup = tile_setup((32, 48), (32, 48))
    torch.manual_seed(0)
    model = create_model("patchcore", setup.tile_size, backbone=BACKBONE, weights="none", coreset_ratio=0.25)
    images = scene_images(setup)
    return train(model, setup, images, tmp_path_factory.mktemp("banks") / "run", seed=0), images


@pytest.mark.parametrize("calibration", [None, 3])
def test_int8_banks_are_patches_of_the_images_given(calibration, banks, tmp_path, monkeypatch):
    """Of the run's own images those that it chose. Of others, here fewer, some of theirs: its numbers mean nothing."""
    run, images = banks
    if calibration:
        others = scene(calibration, (32, 48), seed=5)
        images = replace(images, fit=others, source=replace(images.source, training=("another",) * calibration))
    heads, model = [], run.model()
    monkeypatch.setattr(model, "in_int8", heads.append)  # it is asked, and has none
    shared, _ = export._write_graphs(tmp_path, run, model, images, ExportOptions(), no_progress)
    session = open_session(
        tmp_path / shared.files[0].path,
        Format.OPENVINO,
        "CPU",
        precision=ExecutionPrecision.F32,
        batch_size=export.REFIT_BATCH,  # one of another size may round otherwise
    )
    (seen,) = export.EngineExtract(session, model.feature_names, turned=False)(torch.from_numpy(images.fit))
    session.close()
    (head,) = heads
    patches, vectors = seen.flatten(0, 2).numpy(), (head.bank[:, :-2] + head.centre).numpy()
    distances = np.linalg.norm(vectors[:, None] - patches, axis=2)  # (bank, patches)
    nearest = distances.argmin(1).tolist()
    assert distances.min(1).max() < 1e-3 * distances.mean()
    assert len(set(nearest)) == len(vectors) == len(patches) // 4
    if not calibration:
        assert nearest == run.head(model, Location(0, 0)).chosen.tolist()


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[-1]], ids="-".join)
def test_thresholds_are_those_of_the_bundles_own_graphs(kind, bundle_of, trained):
    _, images = trained
    manifest = read_bundle(bundle_of(kind)).manifest
    with edge_ad.load(bundle_of(kind), precision="f32") as detector:
        again = fit_normalisation(detector.with_normalisation(RAW), images.held_out)
    assert again.rule == manifest.normalisation.rule == "sigma:3 on 5 held-out normal images"
    for a, b in ((again.score, manifest.normalisation.score), (again.map, manifest.normalisation.map)):
        assert (a.low, a.threshold) == pytest.approx((b.low, b.threshold), rel=1e-5)


def test_a_bundle_can_be_moved(bundle_of, tmp_path):
    moved = shutil.copytree(bundle_of((Format.OPENVINO, Precision.FP32)), tmp_path / "elsewhere" / "b")
    with edge_ad.load(moved) as detector:
        verify_bundle(detector, read_bundle(moved))


def test_heads_share_a_compiled_graph_and_leave_memory_where_a_budget_asks(tmp_path, monkeypatch):
    run, images = tiny_run(tmp_path / "run", tile_setup((64, 96), (32, 48)))
    export_run(run, images, tmp_path / "bundle", ExportOptions(precision=Precision.FP16))
    bundle = read_bundle(tmp_path / "bundle")
    forgotten = []
    monkeypatch.setattr(Constants, "forget", lambda self: forgotten.append(self))
    sizes = [loaded_bytes(graph) for graph in (bundle.manifest.shared, *bundle.manifest.heads)]
    probe = images.held_out[:1]
    with edge_ad.load(bundle.path) as plain:
        expected = plain.raw(probe).maps.copy()
        (shared,) = {id(head.shared): head.shared for head in plain.heads.values()}.values()
        assert shared is not None
        assert not any(head.aside for head in plain.heads.values())
    with edge_ad.load(bundle.path, memory_budget=sizes[0] + 2 * max(sizes[1:])) as aside:
        assert all(head.aside for head in aside.heads.values())
        forgotten.clear()
        np.testing.assert_array_equal(aside.raw(probe).maps, expected)
        assert len(forgotten) == len(bundle.manifest.heads)


def test_a_shared_model_has_one_head(tmp_path):
    setup = tile_setup((32, 96), (32, 48), sharing=Sharing.ALL)
    run, images = tiny_run(tmp_path / "run", setup, stage=NormalisationStage.TILE)
    manifest = export_run(run, images, tmp_path / "bundle", ExportOptions(Format.OPENVINO, Precision.FP16))
    assert [graph.location for graph in manifest.heads] == [(0, 0)]
    assert len(manifest.normalisation.tile_score) == 2
    with edge_ad.load(tmp_path / "bundle") as detector:
        verify_bundle(detector, read_bundle(tmp_path / "bundle"))


@pytest.mark.parametrize("sharing", Sharing)
def test_a_global_model_is_one_head_more_on_the_same_extractor(sharing, tmp_path):
    setup = replace(tile_setup((32, 96), (32, 48), sharing=sharing), global_model=True)
    run, images = tiny_run(tmp_path / "run", setup)
    manifest = export_run(run, images, tmp_path / "bundle", ExportOptions(Format.OPENVINO, Precision.INT8))
    assert manifest.shared is not None
    assert [graph.location for graph in manifest.heads] == list(setup.model_locations)
    assert manifest.heads[-1].location == WHOLE
    probe = scene(1, setup.image_size, seed=4)
    with edge_ad.load(tmp_path / "bundle") as detector, run_detector(run, normalisation=run.normalisation()) as torch_:
        verify_bundle(detector, read_bundle(tmp_path / "bundle"))
        exported, trained = detector.raw(probe), torch_.raw(probe)
    assert exported.global_scores == pytest.approx(trained.global_scores, rel=0.1)

    # Its head is that of a single model on the same images, shrunk beforehand
    model = run.model()
    small = np.stack([cv2.resize(image, (48, 32), interpolation=cv2.INTER_AREA) for image in images.fit])
    single = TileStream(small, TileGrid((32, 48), (32, 48), (32, 48)), (Location(0, 0),), model.extract)
    wanted = model.fit(single, location_seed(0, WHOLE)).state_dict()
    for key, value in run.head(model, WHOLE).state_dict().items():
        torch.testing.assert_close(value, wanted[key])


def test_few_held_out_images_make_as_many_probes(tmp_path):
    """Ranks of four probes change by 0.2 where two neighbours swap: a gate on them would be a lottery."""
    images = scene_images(SETUP, held_out=2)
    run = train(tiny_model(SETUP.tile_size), SETUP, images, tmp_path / "run", seed=0)
    manifest = export_run(run, images, tmp_path / "bundle", ExportOptions(Format.OPENVINO, Precision.FP32))
    assert manifest.parity[0].images == PARITY_IMAGES


# --- when it cannot be written, or must not be ------------------------------------------------------------------------

FP16 = ExportOptions(Format.OPENVINO, Precision.FP16)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (replace(FP16, parity_tolerance=0.0, overwrite=True), ParityError, "fp16 maps differ from the trained model's"),
        (replace(FP16, rank_correlation=1.01, overwrite=True), ParityError, r"at least 1\.01 wanted"),
        (replace(FP16, accuracy_drop=-1.5, overwrite=True), AccuracyDropError, r"more than --accuracy-drop -1\.5"),
    ],
)
def test_nothing_is_written_when_a_gate_is_not_met(trained, tmp_path, options, error, message):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("of an earlier one")
    with pytest.raises(error, match=message):
        export_run(*trained, tmp_path / "bundle", options)
    assert left_in(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "of an earlier one"


def test_accuracy_on_planted_defects_is_gated(trained, tmp_path, monkeypatch):
    """5 normal images rank below 11 planted ones, but for one pair of 55: on the bundle's side, then on the run's."""
    ranked = np.arange(PARITY_IMAGES, dtype=np.float32)
    swapped = ranked[[0, 1, 2, 3, 5, 4, *range(6, PARITY_IMAGES)]]
    maps = np.zeros((PARITY_IMAGES, *SETUP.image_size), np.float32)

    def gated(of_run, of_bundle, accuracy_drop):
        found = iter(
            [Predictions(of_run, maps, 0.0), *[Predictions(of_bundle, maps, 0.0)] * 2]
        )  # torch, f32, default precision
        monkeypatch.setattr(export, "predict", lambda detector, probes: next(found))
        export_run(*trained, tmp_path / "bundle", replace(FP16, accuracy_drop=accuracy_drop, overwrite=True))

    with pytest.raises(AccuracyDropError, match=r"falls from 1\.0000 to 0\.9818, more than --accuracy-drop 0\.018$"):
        gated(ranked, swapped, 0.018)
    assert left_in(tmp_path) == []
    gated(ranked, swapped, 0.0182)
    gated(swapped, ranked, 0.0)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_heads_in_the_wrong_place_do_not_pass(trained, tmp_path, monkeypatch, precision):
    """The gate is no formality: the reference has its two heads swapped."""
    run, images = trained
    swapped = replace(run, path=shutil.copytree(run.path, tmp_path / "run"))
    for col in range(2):
        shutil.copy(run.head_path(Location(0, 1 - col)), swapped.head_path(Location(0, col)))
    monkeypatch.setattr(export, "run_detector", lambda run, model, **options: run_detector(swapped, model, **options))
    with pytest.raises(ParityError):
        export_run(run, images, tmp_path / "bundle", ExportOptions(Format.OPENVINO, precision))
    assert left_in(tmp_path) == ["run"]


@pytest.mark.parametrize("where", ["exporting r00_c01", "parity: openvino auto"])
def test_ctrl_c_leaves_nothing(trained, tmp_path, where):
    def interrupt(done, total, what):
        if what == where:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(*trained, tmp_path / "bundle", FP16, interrupt)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("graph_format", Format)
def test_a_full_disk_leaves_nothing(trained, tmp_path, graph_format):
    """Really: the process may write 50 kB per file, a quarter of the extractor."""
    with (
        file_size_limit(50_000),
        pytest.raises(OutputWriteError, match=r"cannot write .*bundle: .*; free some space") as caught,
    ):
        export_run(*trained, tmp_path / "bundle", replace(FP16, format=graph_format))
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == []


def never(*step):
    raise AssertionError(f"worked: {step}")


def test_an_existing_bundle_is_kept_unless_told_otherwise(trained, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("keep")
    with pytest.raises(OutputExistsError, match=r"bundle exists; choose another -o, or pass --overwrite"):
        export_run(*trained, tmp_path / "bundle", FP16, never)
    with pytest.raises(OutputExistsError, match=r"bundle is not empty and holds no manifest\.json; choose another -o"):
        export_run(*trained, tmp_path / "bundle", replace(FP16, overwrite=True), never)
    assert left_in(tmp_path / "bundle") == ["mine.txt"]
    (tmp_path / "bundle" / "manifest.json").write_text("of an earlier one")
    export_run(*trained, tmp_path / "bundle", replace(FP16, overwrite=True))
    read_bundle(tmp_path / "bundle")
    assert left_in(tmp_path) == ["bundle"]


def test_an_incomplete_run_is_refused(trained, tmp_path):
    run, images = trained
    part = replace(run, path=shutil.copytree(run.path, tmp_path / "run"))
    part.head_path(Location(0, 1)).unlink()
    with pytest.raises(IncompleteRunError, match="r00_c01 missing"):
        export_run(part, images, tmp_path / "bundle", FP16, never)
    assert left_in(tmp_path) == ["run"]
