"""The detector against the same arithmetic written down directly, in float64."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_session import FakeSession, fake_detector, session_of
from numpy.typing import NDArray
from scipy import ndimage
from tiny_bundle import IMAGE_SIZE, expected_tile, head_constants, some_image, tiny_manifest, tiny_setup

import edge_ad
from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.bundle.manifest import (
    Format,
    InputSpec,
    Manifest,
    Merge,
    Normalisation,
    NormalisationStage,
    Scale,
    ScoreMerge,
)
from edge_ad.errors import (
    BundleError,
    ChangedFileError,
    ColorError,
    DeviceNotFoundError,
    FrameError,
    InferenceError,
    InputError,
    UnsupportedPrecisionError,
)
from edge_ad.imaging import resize
from edge_ad.runtime import loading
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.loading import open_detector
from edge_ad.runtime.session import ExecutionPrecision, TensorSpec
from edge_ad.setups import Sharing

Write = Callable[..., Path]


def _tile_manifest() -> Manifest:
    tiles = range(4)
    return tiny_manifest(
        normalisation=Normalisation(
            NormalisationStage.TILE,
            "fixed",
            Scale(-0.2, 0.9),
            Scale(-0.1, 0.8),
            tuple(Scale(0.1 * i, 1.0 + 0.3 * i) for i in tiles),
            tuple(Scale(0.05 * i, 0.7 + 0.2 * i) for i in tiles),
        )
    )


MANIFESTS = {
    "ensemble": tiny_manifest(),
    "overlap": tiny_manifest(tiny_setup(stride=(23, 29), tile_size=(31, 37), image_size=(54, 66))),
    "padded": tiny_manifest(tiny_setup((47, 61), (23, 29), (17, 19))),
    "shared model": tiny_manifest(tiny_setup(sharing=Sharing.ALL)),
    "one tile": tiny_manifest(tiny_setup((23, 29), (23, 29), (23, 29))),
    "max, no seams": tiny_manifest(merge=Merge(ScoreMerge.MAX, 2.0, 0.0)),
    "tile stage": _tile_manifest(),
}


def _line(values: Any, scale: Scale) -> Any:
    return 0.5 * (values - scale.low) / (scale.threshold - scale.low)


def _expected(image: NDArray[np.uint8], manifest: Manifest) -> tuple[NDArray[np.float64], float, list[float]]:
    """(merged map, score, tile scores): padded by hand, averaged by a counter, seams by scipy."""
    setup, norm = manifest.setup, manifest.normalisation
    (height, width), (h, w), (stride_y, stride_x) = setup.image_size, setup.tile_size, setup.stride
    rows, cols = -(-(height - h) // stride_y) + 1, -(-(width - w) // stride_x) + 1
    padded_height, padded_width = (rows - 1) * stride_y + h, (cols - 1) * stride_x + w
    padded = np.zeros((padded_height, padded_width, 3), np.uint8)
    padded[:height, :width] = image
    total, count = np.zeros(padded.shape[:2]), np.zeros(padded.shape[:2])
    scores, scaled, edges = [], [], (set(), set())
    for index, location in enumerate(setup.grid.locations):
        top, left = location.row * stride_y, location.col * stride_x
        tile_map, score = expected_tile(padded[top : top + h, left : left + w], setup.model_of(location))
        scores.append(score)
        if norm.stage is NormalisationStage.TILE:
            tile_map, score = _line(tile_map, norm.tile_map[index]), _line(score, norm.tile_score[index])
        scaled.append(score)
        total[top : top + h, left : left + w] += tile_map
        count[top : top + h, left : left + w] += 1
        edges[0].update((top, top + h))
        edges[1].update((left, left + w))
    merged = (total / count)[:height, :width]
    near = np.zeros(merged.shape, bool)
    for axis, (size, tile) in enumerate(((height, h), (width, w))):
        reach = int(manifest.merge.seam_band * tile)
        for edge in edges[axis]:
            if 0 < edge < size:
                window = [slice(None), slice(None)]
                window[axis] = slice(max(0, edge - reach), edge + reach)
                near[tuple(window)] = True
    smooth = ndimage.gaussian_filter(merged, manifest.merge.seam_sigma_px, mode="reflect", truncate=4)
    score = max(scaled) if manifest.merge.score is ScoreMerge.MAX else sum(scaled) / len(scaled)
    return np.where(near, smooth, merged), score, scores


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", MANIFESTS)
def test_raw_is_the_straightforward_computation(name: str, batch_size: int) -> None:
    manifest = MANIFESTS[name]
    detector = fake_detector(manifest, batch_size)
    for seed in range(2):  # accumulators start afresh
        images = np.stack([some_image(manifest.setup, 10 * seed + i) for i in range(batch_size)])
        raw = detector.raw(images)
        for index, image in enumerate(images):
            expected_map, score, tile_scores = _expected(image, manifest)
            np.testing.assert_allclose(raw.maps[index], expected_map, atol=2e-6)  # float32 sums of up to 4 tiles
            assert raw.scores[index] == pytest.approx(score, abs=2e-6)
            np.testing.assert_allclose(raw.tile_scores[index], tile_scores, atol=1e-6)


@pytest.mark.parametrize("graph_format", Format)
@pytest.mark.parametrize("name", ["ensemble", "padded", "shared model", "tile stage"])
def test_engines_do_the_same(tiny_bundle: Write, name: str, graph_format: Format) -> None:
    manifest = MANIFESTS[name]
    image = some_image(manifest.setup)
    with edge_ad.load(tiny_bundle(manifest, graph_format), precision="f32") as detector:
        raw = detector.raw(image[None])
    expected_map, score, _ = _expected(image, manifest)
    np.testing.assert_allclose(raw.maps[0], expected_map, atol=2e-6)
    assert raw.scores[0] == pytest.approx(score, abs=2e-6)


def test_fewer_images_than_the_batch() -> None:
    manifest = MANIFESTS["padded"]
    images = np.stack([some_image(manifest.setup, seed) for seed in range(5)])
    detector = fake_detector(manifest, 3)
    first = detector.raw(images[:3])
    rest = detector.raw(images[3:])
    assert (rest.scores.shape, rest.maps.shape, rest.tile_scores.shape) == ((2,), (2, 47, 61), (2, 9))
    alone = fake_detector(manifest)
    for index in range(5):
        one = alone.raw(images[index : index + 1])
        several, at = (first, index) if index < 3 else (rest, index - 3)
        np.testing.assert_array_equal(several.maps[at], one.maps[0])
        assert several.scores[at] == one.scores[0]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 46, 59, 3), np.uint8),
        np.zeros((46, 58, 3), np.uint8),
        np.zeros((3, 46, 58, 3), np.uint8),
        np.zeros((0, 46, 58, 3), np.uint8),
        np.zeros((1, 46, 58, 3), np.float32),
    ],
)
def test_raw_takes_images_of_its_size_only(images: Any) -> None:
    with pytest.raises(FrameError, match=r"expected 1 to 2 images uint8 of \(46, 58, 3\), but got"):
        fake_detector(tiny_manifest(), 2).raw(images)


def test_read_only_images_and_views_are_fine(tiny_bundle: Write) -> None:
    manifest = MANIFESTS["one tile"]
    images = some_image(manifest.setup)[None]
    with edge_ad.load(tiny_bundle(manifest)) as detector:
        expected = detector.raw(images).maps
        images.flags.writeable = False
        np.testing.assert_array_equal(detector.raw(images).maps, expected)
        doubled = np.repeat(images, 2, axis=2)
        np.testing.assert_array_equal(detector.raw(doubled[:, :, ::2]).maps, expected)


def test_tiles_come_unmerged_and_unscaled() -> None:
    manifest = _tile_manifest()
    image = some_image(manifest.setup)
    crops = dict(zip(manifest.setup.grid.locations, manifest.setup.grid.crop(image), strict=True))
    seen = []
    for location, scores, maps in fake_detector(manifest, 2).tiles(image[None]):
        expected_map, expected_score = expected_tile(crops[location], location)
        assert (scores.shape, maps.shape) == ((1,), (1, 23, 29))
        np.testing.assert_allclose(maps[0], expected_map, atol=1e-6)
        assert scores[0] == pytest.approx(expected_score, abs=1e-6)
        seen.append(location)
    assert tuple(seen) == manifest.setup.grid.locations


def test_tiles_belong_to_the_caller_and_do_not_hold_the_detector() -> None:
    detector = fake_detector(_tile_manifest())
    image = some_image(detector.manifest.setup)[None]
    tiles = iter(detector.tiles(image))
    _, scores, maps = next(tiles)  # the others may be asked for whenever the caller likes
    assert scores.flags.owndata
    assert maps.flags.owndata
    other = threading.Thread(target=detector.raw, args=(image,), daemon=True)
    other.start()
    other.join(5)
    assert not other.is_alive()


# --- one frame ----------------------------------------------------------------------------------------------------


def test_a_frame_is_converted_resized_and_scaled() -> None:
    manifest = tiny_manifest()
    frame = np.random.default_rng(3).integers(0, 256, (101, 131, 3), dtype=np.uint8)
    bgr = frame[:, :, ::-1]
    result = fake_detector(manifest)(bgr, color="bgr", frame_id="c7")
    assert result.frame is bgr
    assert (result.color, result.bits) == ("bgr", None)
    raw_map, raw_score, tile_scores = _expected(resize(frame, (46, 58)), manifest)
    np.testing.assert_allclose(result.raw_map, raw_map, atol=2e-6)
    np.testing.assert_allclose(result.anomaly_map, np.clip(_line(raw_map, Scale(0.1, 0.9)), 0, 1), atol=2e-6)
    assert result.anomaly_map.dtype == np.float32
    np.testing.assert_array_equal(result.pred_mask, result.anomaly_map >= 0.5)
    assert result.raw_score == pytest.approx(raw_score, abs=2e-6)
    assert result.pred_score == pytest.approx(_line(raw_score, Scale(0.2, 1.2)), abs=2e-6)
    np.testing.assert_allclose(result.tile_scores, tile_scores, atol=1e-6)
    assert (result.original_size, result.frame_id, result.is_normalised) == ((101, 131), "c7", True)
    assert result.map_at().shape == (101, 131)
    assert result.map_at((7, 11)).shape == (7, 11)


@pytest.mark.parametrize(("threshold", "label"), [(0.8925, True), (0.8926, False)])
def test_the_threshold_is_half(threshold: float, label: bool) -> None:
    """The four heads' maxima of this image are known: tests/tiny_bundle.py's golden score 0.8925."""
    norm = Normalisation(NormalisationStage.IMAGE, "fixed", Scale(0.0, threshold), Scale(0.0, 1.0), (), ())
    manifest = tiny_manifest(normalisation=norm)
    result = fake_detector(manifest)(some_image(manifest.setup), color="rgb")
    assert result.pred_label is label
    assert result.pred_label == (result.pred_score >= 0.5)
    assert result.pred_score == pytest.approx(0.5, abs=1e-3)


def test_frames_of_other_proportions_than_the_training_images_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    detector = fake_detector(tiny_manifest(input=InputSpec("rgb", "area", proportions=(1.2, 1.5))))
    for size in ((100, 120), (100, 150), (100, 115), (100, 157), IMAGE_SIZE):  # the last as resized by the caller
        detector(np.zeros((*size, 3), np.uint8), color="rgb")
    assert caplog.messages == []
    for _ in range(2):
        detector(np.zeros((100, 200, 3), np.uint8), color="rgb")
        detector(np.zeros((200, 100), np.uint8), color="mono")
    assert caplog.messages == [
        "frames of 100x200 are 2.00 times as wide as high, but the training images were 1.20 to 1.50 times: "
        "resized to 46x58 they are squeezed differently; crop them alike"
    ]
    caplog.clear()
    fake_detector(tiny_manifest())(np.zeros((100, 200, 3), np.uint8), color="rgb")  # nothing is known
    assert caplog.messages == []


def test_a_score_at_its_threshold_is_anomalous_however_it_is_scaled() -> None:
    """Scaled in float32, a score at its threshold is below 0.5 for every sixth pair of low and threshold."""
    manifest = tiny_manifest()
    image = some_image(manifest.setup)
    raw = fake_detector(manifest)(image, color="rgb")
    for low in np.random.default_rng(5).uniform(-2, 0.5, 50):
        score, at = Scale(float(low), raw.raw_score), Scale(float(low), float(raw.raw_map.max()))
        norm = Normalisation(NormalisationStage.IMAGE, "fixed", score, at, (), ())
        result = fake_detector(replace(manifest, normalisation=norm))(image, color="rgb")
        assert result.pred_label is True
        assert result.pred_mask.sum() == (raw.raw_map == raw.raw_map.max()).sum()


@pytest.mark.parametrize(("threshold", "label"), [(0.89, True), (0.9, False)])
def test_stage_none_stays_raw(threshold: float, label: bool) -> None:
    norm = Normalisation(NormalisationStage.NONE, "fixed", Scale(0.0, threshold), Scale(0.0, 0.6), (), ())
    manifest = tiny_manifest(normalisation=norm)
    result = fake_detector(manifest)(some_image(manifest.setup), color="rgb")
    assert result.pred_score == result.raw_score
    assert result.pred_label is label
    np.testing.assert_array_equal(result.anomaly_map, result.raw_map)
    np.testing.assert_array_equal(result.pred_mask, result.raw_map >= np.float32(0.6))
    assert not result.is_normalised


def test_results_own_their_arrays() -> None:
    manifest = tiny_manifest()
    detector = fake_detector(manifest)
    first = detector(some_image(manifest.setup, 1), color="rgb")
    kept = {name: np.array(getattr(first, name)) for name in ("anomaly_map", "raw_map", "pred_mask", "tile_scores")}
    second = detector(some_image(manifest.setup, 2), color="rgb")
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(first, name), array)
        assert not np.array_equal(getattr(second, name), array)


def test_timings_cover_the_call() -> None:
    manifest = tiny_manifest()
    timings = fake_detector(manifest)(some_image(manifest.setup), color="rgb").timings_ms
    stages = ["convert", "wait", "tiles", "infer", "merge", "seams", "post"]
    assert list(timings) == [*stages, "total"]
    assert timings["total"] == pytest.approx(sum(timings[stage] for stage in stages))
    assert min(timings.values()) >= 0


def test_colour_is_declared() -> None:
    detector = fake_detector(tiny_manifest())
    with pytest.raises(ColorError):
        detector(np.zeros((46, 58, 3), np.uint8), color="gbr")
    with pytest.raises(FrameError):
        detector(np.zeros((46, 58), np.uint8), color="rgb")
    with pytest.raises(TypeError):
        detector(np.zeros((46, 58, 3), np.uint8))  # type: ignore[call-arg]


def test_deep_frames_need_their_bits() -> None:
    detector = fake_detector(tiny_manifest())
    frame = np.full((46, 58), 1023, np.uint16)
    with pytest.raises(FrameError):
        detector(frame, color="mono")
    with pytest.raises(InputError, match="bits: expected 8 to 16, but got 99"):
        detector(frame, color="mono", bits=99)
    white = detector(np.full((46, 58), 255, np.uint8), color="mono")
    np.testing.assert_array_equal(detector(frame, color="mono", bits=10).raw_map, white.raw_map)


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_numbers_that_are_none_name_their_tile(poison: float) -> None:
    manifest = tiny_manifest()
    detector = fake_detector(manifest)
    image = some_image(manifest.setup)[None]
    expected = detector.raw(image).maps
    head = detector.sessions[3]
    assert isinstance(head, FakeSession)
    head.poison = poison
    with pytest.raises(InferenceError, match=r"tile r01_c00: the model gave NaN or infinity on CPU in f32"):
        detector.raw(image)
    head.poison = None
    np.testing.assert_array_equal(detector.raw(image).maps, expected)  # nothing of the failed image is left


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("blank", "names"),
    [((), "r00_c00 or r00_c01 or r01_c00 or r01_c01"), (((0, 0),), "r00_c01 or r01_c00 or r01_c01")],
)
def test_numbers_that_are_none_name_the_tiles_that_cover_the_pixel(blank: tuple[Any, ...], names: str) -> None:
    setup = tiny_setup(stride=(23, 29), tile_size=(31, 37), image_size=(54, 66))
    manifest = tiny_manifest(replace(setup, blank_tiles=blank))
    detector = fake_detector(manifest)
    head = detector.sessions[-1]
    assert isinstance(head, FakeSession)
    head.poison = np.nan  # at row 3, column 5 of the last tile, which all four cover
    with pytest.raises(InferenceError, match=rf"tile {names}: the model gave NaN"):
        detector.raw(some_image(manifest.setup)[None])
    with pytest.raises(InferenceError, match=r"tile r01_c01: the model gave NaN"):
        detector.tiles(some_image(manifest.setup)[None])


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_numbers_whose_sum_is_none_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tiny_manifest(merge=Merge(ScoreMerge.MAX, 0.0, 0.0))
    detector = fake_detector(manifest)
    monkeypatch.setattr(FakeSession, "fetch", lambda self, handle: np.full_like(handle, 1e36))
    image = some_image(manifest.setup)[None]
    assert {maps.max() for _, _, maps in detector.tiles(image)} == {np.float32(1e36)}
    assert detector.raw(image).maps.max() == np.float32(1e36)


def test_closed() -> None:
    manifest = tiny_manifest()
    with fake_detector(manifest) as detector:
        other = detector.with_normalisation(manifest.normalisation)
    detector.close()
    assert all(session.closed for session in detector.sessions if isinstance(session, FakeSession))
    for each in (detector, other):
        with pytest.raises(InferenceError, match="this detector is closed; load the bundle again"):
            each(some_image(manifest.setup), color="rgb")


def test_closed_by_a_signals_handler_in_the_midst_of_a_call() -> None:
    """Such a handler runs in the thread of the call: that ends first, and frees the sessions then."""
    detector = fake_detector(tiny_manifest())
    image = some_image(detector.manifest.setup)
    expected = detector(image, color="rgb")
    head = detector.sessions[2]
    assert isinstance(head, FakeSession)
    run, messages = head.run, []

    def interrupted(feeds: Any) -> Any:
        detector.close()
        with pytest.raises(InferenceError) as caught:
            detector(image, color="rgb")
        messages.append(str(caught.value))
        return run(feeds)

    head.run = interrupted  # type: ignore[method-assign]
    np.testing.assert_array_equal(detector(image, color="rgb").raw_map, expected.raw_map)
    assert messages == [
        "this thread is in a call of this detector already; a signal's handler cannot begin another one"
    ]
    assert all(session.closed for session in detector.sessions if isinstance(session, FakeSession))
    with pytest.raises(InferenceError, match="this detector is closed"):
        detector(image, color="rgb")


@pytest.mark.parametrize(
    ("which", "tensors", "name", "spec", "message"),
    [
        (0, "inputs", "image", ((1, 23, 31, 3), "uint8"), "the shared graph: expected input image as uint8"),
        (1, "inputs", "features", ((1, 1, 23, 28), "float32"), "head r00_c00: expected input features as float32"),
        (
            2,
            "inputs",
            "more",
            ((1, 1), "float32"),
            "head r00_c01: unknown input more; expected some of image, features",
        ),
        (3, "outputs", "pred_score", ((1, 1), "float32"), "head r01_c00: expected output pred_score as float32"),
        (4, "outputs", "anomaly_map", ((1, 1, 23, 29), "float16"), "head r01_c01: expected output anomaly_map"),
        (4, "outputs", "pred_score", None, "head r01_c01: no output pred_score"),
    ],
)
def test_graphs_that_do_not_fit(which: int, tensors: str, name: str, spec: Any, message: str) -> None:
    manifest = tiny_manifest()
    sessions = [FakeSession((23, 29), None), *(FakeSession((23, 29), at) for at in manifest.setup.model_locations)]
    specs = dict(getattr(sessions[which], tensors))
    if spec is None:
        del specs[name]
    else:
        specs[name] = TensorSpec(name, *spec)
    setattr(sessions[which], tensors, specs)
    with pytest.raises(BundleError, match=message):
        Detector(manifest, sessions[0], sessions[1:])


@pytest.mark.parametrize(
    ("which", "message"),
    [(0, "the shared graph: no input image"), (2, r"head r00_c01: no input; expected some of image")],
)
def test_graphs_that_see_nothing(which: int, message: str) -> None:
    """Constants alone would give the same verdict on every image."""
    manifest = tiny_manifest()
    sessions = [FakeSession((23, 29), None), *(FakeSession((23, 29), at) for at in manifest.setup.model_locations)]
    sessions[which].inputs = {}
    with pytest.raises(BundleError, match=message):
        Detector(manifest, sessions[0], sessions[1:])


# --- threads ------------------------------------------------------------------------------------------------------


def test_threads_take_turns() -> None:
    manifest = tiny_manifest()
    detector = fake_detector(manifest)
    images = [some_image(manifest.setup, seed) for seed in range(4)]
    expected = [detector.raw(image[None]).maps for image in images]
    faults: list[int] = []

    def work(index: int) -> None:
        same = [np.array_equal(detector.raw(images[index][None]).maps, expected[index]) for _ in range(20)]
        if not all(same):
            faults.append(index)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert faults == []


# --- load ---------------------------------------------------------------------------------------------------------


def test_load_checks_the_files(tiny_bundle: Write) -> None:
    bundle = tiny_bundle()
    (bundle / "graphs" / "r00_c01.bin").write_bytes(b"")
    with pytest.raises(ChangedFileError):
        edge_ad.load(bundle)


def test_load_says_what_it_made(tiny_bundle: Write) -> None:
    with edge_ad.load(tiny_bundle(), precision="f32", batch_size=2) as detector:
        assert repr(detector) == (
            "Detector(padim custom (46x58 image, 4 tiles of 23x29, 4 models), fp32 openvino on CPU in f32, batch 2)"
        )
        assert detector.image_size == (46, 58)
        assert len(detector.sessions) == 5


@pytest.mark.parametrize("merge", list(ScoreMerge))
def test_the_score_merge(tiny_bundle: Write, merge: ScoreMerge) -> None:
    manifest = tiny_manifest()
    bundle = tiny_bundle(replace(manifest, merge=replace(manifest.merge, score=merge)))
    image, grid = some_image(tiny_setup()), tiny_setup().grid
    maxima = [expected_tile(tile, at)[1] for at, tile in zip(grid.locations, grid.crop(image), strict=True)]
    expected = np.mean(maxima) if merge is ScoreMerge.MEAN else np.max(maxima)
    with edge_ad.load(bundle, precision="f32") as detector:
        assert detector.raw(image[None]).scores[0] == pytest.approx(expected, abs=1e-6)


def test_an_unknown_precision(tiny_bundle: Write) -> None:
    with pytest.raises(InputError, match=r"expected one of .*, but got 'f64'"):
        edge_ad.load(tiny_bundle(), precision="f64")


@pytest.mark.parametrize(
    ("precision", "expected"), [("auto", ["auto", "f32", "f32", "f32", "f32"]), ("bf16", ["bf16"] * 5)]
)
def test_heads_keep_f32_unless_told_otherwise(
    tiny_bundle: Write, monkeypatch: pytest.MonkeyPatch, precision: str, expected: list[str]
) -> None:
    asked: list[str] = []

    def open_fake(
        graph: GraphFiles, *args: Any, precision: ExecutionPrecision, batch_size: int, **more: Any
    ) -> FakeSession:
        asked.append(str(precision))
        return session_of(tiny_setup(), graph, batch_size)

    monkeypatch.setattr(loading, "open_session", open_fake)
    edge_ad.load(tiny_bundle(), precision=precision)
    assert asked == expected


def test_a_device_without_f32_runs_its_own_default_and_says_so(
    tiny_bundle: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As OpenVINO's NPU plugin, which executes in f16 alone."""

    def open_fake(
        graph: GraphFiles, graph_format: Format, device: str, *, precision: ExecutionPrecision, **more: Any
    ) -> FakeSession:
        if precision is ExecutionPrecision.F32:
            raise UnsupportedPrecisionError(f"{device} does not execute in f32; ask for f16 or auto")
        session = session_of(tiny_setup(), graph)
        session.device, session.precision = device, "f16"
        return session

    monkeypatch.setattr(loading, "open_session", open_fake)
    bundle = tiny_bundle()
    assert edge_ad.load(bundle, "NPU").precision == "f16"
    (record,) = caplog.records
    assert record.getMessage() == "NPU has no f32 for graphs that rank best in it; they execute in f16"
    with pytest.raises(UnsupportedPrecisionError):
        edge_ad.load(bundle, "NPU", precision="f32")


def test_a_failed_load_closes_what_it_opened(tiny_bundle: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[FakeSession] = []

    def open_fake(graph: GraphFiles, *args: Any, **more: Any) -> FakeSession:
        if len(opened) == 3:
            raise InferenceError("disk on fire")
        opened.append(FakeSession((23, 29), None))
        return opened[-1]

    monkeypatch.setattr(loading, "open_session", open_fake)
    with pytest.raises(InferenceError, match="disk on fire"):
        edge_ad.load(tiny_bundle())
    assert [session.closed for session in opened] == [True] * 3


def test_device_errors_come_through(tiny_bundle: Write) -> None:
    with pytest.raises(DeviceNotFoundError, match="'CUDA' is not one that OpenVINO finds here; found: CPU"):
        edge_ad.load(tiny_bundle(), "CUDA")


def test_a_detector_without_an_extractor() -> None:
    """A method whose heads take the image alone."""
    manifest = tiny_manifest()

    class Whole(FakeSession):
        def run(self, feeds: Any) -> Any:
            pixels = feeds["image"].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
            return super().run({**feeds, "features": pixels.mean(1, keepdims=True)})

    heads = [Whole((23, 29), location) for location in manifest.setup.model_locations]
    for head in heads:
        head.inputs = {"image": head.inputs["image"]}
    image = some_image(manifest.setup)[None]
    maps = Detector(manifest, None, heads).raw(image).maps
    np.testing.assert_array_equal(maps, fake_detector(manifest).raw(image).maps)


def test_open_detector_takes_a_manifest_of_its_own(tiny_bundle: Write) -> None:
    bundle = read_bundle(tiny_bundle())
    none = Normalisation(NormalisationStage.NONE, "none", Scale(0, 1), Scale(0, 1), (), ())
    raw = replace(bundle.manifest, normalisation=none)
    with open_detector(bundle.path, raw, precision=ExecutionPrecision.F32) as detector:
        assert not detector(some_image(raw.setup), color="rgb").is_normalised


def test_constants_differ_by_location() -> None:
    """Otherwise a head in the wrong place would go unseen in all of the above."""
    constants = {head_constants(location) for location in tiny_setup().model_locations}
    assert len(constants) == 4


@pytest.mark.parametrize(
    ("name", "shape"), [("pred_score", (29,)), ("pred_score", (1, 1)), ("anomaly_map", (1, 1, 1, 1))]
)
def test_outputs_of_other_shapes_than_the_graphs_are_refused(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a bundle with changed constants did: engines compute some shapes while they run."""
    detector = fake_detector(tiny_manifest())
    head = detector.heads[detector.grid.locations[1]]
    honest = head.run
    monkeypatch.setattr(head, "run", lambda feeds: {**honest(feeds), name: np.zeros(shape, np.float32)})
    with pytest.raises(InferenceError, match=r"tile r00_c01: the model gave scores .* the bundle is damaged"):
        detector.raw(some_image(detector.manifest.setup)[None])
