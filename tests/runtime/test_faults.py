"""Every fault under every action its policy may name: what the reader gets, and what is counted and logged."""

from __future__ import annotations

import gc
import json
import logging
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_session import FakeSession, fake_detector, session_of, stream_threads, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import some_image, tiny_manifest

import edge_ad
from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.errors import (
    ColorError,
    DetectorClosedError,
    FrameChangedError,
    FrameError,
    InferenceError,
    InputError,
    NoFrameError,
    NonFiniteOutputError,
    NonFiniteValuesError,
    SourceError,
    StalledError,
    VerificationError,
)
from edge_ad.imaging import read_image
from edge_ad.runtime import overlay
from edge_ad.runtime.background import Background
from edge_ad.runtime.capture import Captured
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.faults import ACTIONS, LOG_INTERVAL_S, Action, Fault, FaultPolicy, Ledger, reopen_pause_s
from edge_ad.runtime.result import Region, Result, Verdict

Write = Callable[..., Path]
MANIFEST = tiny_manifest()
SETUP = MANIFEST.setup
QUICK: dict[str, Any] = {"reopen_first_s": 0.001, "reopen_longest_s": 0.002}


def _image(seed: int) -> Any:
    return some_image(SETUP, seed)


def _faulty(detector: Detector, faults: dict[int, str], frame_of: Callable[[], int] | None = None) -> Detector:
    """The first head fails ("raise") or gives NaN ("nan") at the given frames; counted here, or by ``frame_of``."""
    head = detector.sessions[1]
    assert isinstance(head, FakeSession)
    run = head.run
    seen = iter(range(10**9))

    def faulty(feeds: Any) -> Any:
        fault = faults.get(next(seen))
        if fault == "raise":
            raise InferenceError("device lost")
        outputs = run(feeds)
        return {**outputs, "pred_score": outputs["pred_score"] * np.float32(np.nan)} if fault == "nan" else outputs

    head.run = faulty  # type: ignore[method-assign]
    return detector


def _run(detector: Detector, source: Any, **options: Any) -> list[Result]:
    """All results; afterwards no frame may be unaccounted for."""
    results = list(detector.stream(source, color="rgb", **options))
    stats = detector.stats()
    assert stats.results == len(results)
    assert stats.pending == 0
    return results


def _is_error(result: Result, fault: Fault) -> None:
    """Nothing in it may be taken for a verdict "normal"."""
    assert (result.verdict, result.fault) == (Verdict.ERROR, fault)
    assert result.error
    assert result.pred_label
    assert result.pred_mask.all()
    assert result.pred_score > 1e30
    assert result.anomaly_map.min() > 1e30
    assert np.isnan([result.raw_score, result.raw_map.max(), *result.tile_scores]).all()
    assert result.map_at((7, 11)).min() > 1e30
    height, width = SETUP.image_size
    assert result.regions == (Region(0, 0, width, height, height * width, np.inf),)


# --- policies ---------------------------------------------------------------------------------------------------------


def test_the_table_has_a_field_per_fault() -> None:
    assert [*ACTIONS] == [*Fault]
    assert all(FaultPolicy()[fault] == Action.RAISE == actions[0] for fault, actions in ACTIONS.items())
    assert {action for actions in ACTIONS.values() for action in actions} == set(Action)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "skip"}, "source: expected one of raise, reopen, but got 'skip'"),
        ({"non_finite": "accept"}, "non_finite: expected one of raise, skip, report, fall_back, but got 'accept'"),
        ({"reopen_first_s": 0}, "expected 0 < reopen_first_s <= reopen_longest_s, both finite, but got 0, 30.0"),
        ({"reopen_first_s": 31}, "expected 0 < reopen_first_s"),
        ({"reopen_longest_s": math.inf}, "both finite, but got 1.0, inf"),
        ({"reopen_first_s": math.inf, "reopen_longest_s": math.inf}, "both finite, but got inf, inf"),
        ({"stall_s": 0}, r"stall_s: expected a finite number above 0 \(None: never\), but got 0"),
        ({"stall_s": math.inf}, r"stall_s: expected a finite number above 0 \(None: never\), but got inf"),
        ({"stall_s": math.nan}, r"stall_s: .*but got nan"),
        ({"reopen_attempts": 0}, r"reopen_attempts: expected a finite number above 0 \(None: for ever\), but got 0"),
        ({"reopen_attempts": math.inf, "source": "reopen"}, r"reopen_attempts: .*but got inf"),
        ({"stalled": "skip"}, "stalled: skip after how many seconds"),
        ({"reopen_attempts": 3, "no_frame": "skip"}, "reopen_attempts: no fault is answered by reopen"),
    ],
)
def test_bad_policies(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FaultPolicy(**options)


def test_options_that_do_not_fit_each_other() -> None:
    detector, other = fake_detector(MANIFEST), fake_detector(replace(MANIFEST, parity_tolerance=0.5))
    falls = FaultPolicy(inference="fall_back")
    with pytest.raises(InputError, match="reopen: expected a callable that opens the source"):
        detector.stream([], color="rgb", policy=FaultPolicy(source="reopen"))
    for policy, standby in ((falls, None), (FaultPolicy(), fake_detector(MANIFEST))):
        with pytest.raises(InputError, match="standby: expected a detector where the policy falls back, and none"):
            detector.stream([], color="rgb", policy=policy, standby=standby)
    with pytest.raises(InputError, match="standby: expected a detector of the same bundle and thresholds"):
        detector.stream([], color="rgb", policy=falls, standby=other)
    for same in (detector, detector.with_normalisation(MANIFEST.normalisation)):
        with pytest.raises(InputError, match="standby: expected another detector, but got this one; load the bundle"):
            detector.stream([], color="rgb", policy=falls, standby=same)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(1, 1e3))
def test_pauses_double_and_are_bounded(attempt: int, first_s: float, factor: float) -> None:
    policy = FaultPolicy(reopen_first_s=first_s, reopen_longest_s=first_s * factor)
    pause_s = reopen_pause_s(attempt, policy)
    assert first_s <= pause_s <= first_s * factor
    assert reopen_pause_s(attempt + 1, policy) in (2 * pause_s, first_s * factor)


# --- the source -------------------------------------------------------------------------------------------------------


def _with_none() -> Iterator[Any]:
    yield from (_image(0), None, None, _image(1))


def test_none_raises() -> None:
    detector = fake_detector(MANIFEST)
    stream = detector.stream(_with_none(), color="rgb")
    assert next(stream).frame_id == 0
    with pytest.raises(NoFrameError, match="the source gave None after 1 frames; is the camera still connected"):
        next(stream)
    assert detector.stats().faults == {Fault.NO_FRAME: 1}


def test_none_is_skipped() -> None:
    detector = fake_detector(MANIFEST)
    results = _run(detector, _with_none(), policy=FaultPolicy(no_frame="skip"))
    assert [result.frame_id for result in results] == [0, 1]
    assert detector.stats().faults == {Fault.NO_FRAME: 2}


def test_none_opens_the_source_again() -> None:
    detector = fake_detector(MANIFEST)
    scripts = [[_image(0), None, _image(9)], [None], [_image(1)]]
    results = _run(detector, lambda: scripts.pop(0), policy=FaultPolicy(no_frame="reopen", **QUICK))
    assert [result.raw_score for result in results] == [
        detector(_image(seed), color="rgb").raw_score for seed in (0, 1)
    ]
    stats = detector.stats()
    assert (stats.faults, stats.reopened) == ({Fault.NO_FRAME: 2}, 2)


def test_a_lost_source_is_opened_again() -> None:
    """It raises, ends, cannot be opened at all, and comes back; at last it stays away."""
    opened = 0

    def script(number: int) -> Iterator[Any]:
        if number == 0:
            yield _image(0)
            raise OSError("cable pulled")
        if number == 3:
            yield from (_image(1), _image(2))
        if number in (4, 7):
            raise SourceError("no route\nto host")

    def camera() -> Iterator[Any]:
        nonlocal opened
        opened += 1
        return script(opened - 1)

    detector = fake_detector(MANIFEST)
    policy = FaultPolicy(source="reopen", reopen_attempts=4, **QUICK)
    stream = detector.stream(camera, color="rgb", policy=policy)
    assert [next(stream).frame_id for _ in range(3)] == [0, 1, 2]
    told = r"the source was opened again 4 times and gave no frame, the last time: no route to host; check the camera"
    with pytest.raises(SourceError, match=told):
        next(stream)
    assert opened == 8
    stats = detector.stats()
    assert (stats.faults, stats.reopened, stats.pending) == ({Fault.SOURCE: 8}, 7, 0)


def test_a_lost_source_is_closed_before_it_opens_again() -> None:
    is_open = threading.Event()

    def camera(numbers: Iterator[int] = iter(range(4))) -> Iterator[Any]:  # noqa: B008 - counts the openings
        assert not is_open.is_set()
        is_open.set()
        try:
            yield _image(next(numbers))
            yield None
        finally:
            is_open.clear()

    detector = fake_detector(MANIFEST)
    stream = detector.stream(camera, color="rgb", policy=FaultPolicy(no_frame="reopen", **QUICK))
    assert [next(stream).frame_id for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert not is_open.is_set()


@pytest.mark.parametrize("source", [list, lambda: [None], lambda: (_ for _ in ()).throw(OSError("no such camera"))])
def test_a_source_that_never_was_there_is_not_opened_again(source: Any) -> None:
    policy = FaultPolicy(source="reopen", no_frame="reopen")
    with pytest.raises((SourceError, OSError), match=r"gave no frame|gave None after 0|no such camera"):
        list(fake_detector(MANIFEST).stream(source, color="rgb", policy=policy))


def test_a_callable_that_opens_nothing_is_an_error_whatever_the_policy() -> None:
    with pytest.raises(SourceError, match="gave no frame; check its path, index or address"):
        list(fake_detector(MANIFEST).stream(lambda: iter(()), color="rgb"))
    assert list(fake_detector(MANIFEST).stream([], color="rgb")) == []  # frames at hand may be none


def test_a_pause_ends_when_the_stream_is_closed() -> None:
    policy = FaultPolicy(source="reopen", reopen_first_s=1000, reopen_longest_s=1000)
    stream = fake_detector(MANIFEST).stream(lambda: [_image(0)], color="rgb", policy=policy)
    next(stream)
    stream.close()
    assert not stream_threads()


def _blocking_camera(detector: Detector, before: int) -> Iterator[Any]:
    """``before`` frames, and one more once a stall is counted that began after them."""
    yield from map(_image, range(before))
    stalls = detector.stats().faults.get(Fault.STALLED, 0)  # a loaded machine may be late with the first frame too
    wait_until(lambda: detector.stats().faults.get(Fault.STALLED, 0) > stalls)
    yield _image(before)


def test_a_stall_raises() -> None:
    """The camera blocks; its thread cannot be stopped, and need not be."""
    detector = fake_detector(MANIFEST)
    stream = detector.stream(_blocking_camera(detector, 0), color="rgb", policy=FaultPolicy(stall_s=0.01))
    with pytest.raises(StalledError, match=r"no result for 0.01 s: the source gives no frame"):
        next(stream)
    assert detector.stats().faults == {Fault.STALLED: 1}


def test_a_stall_is_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    detector = fake_detector(MANIFEST)
    policy = FaultPolicy(stalled="skip", stall_s=0.01)
    results = _run(detector, _blocking_camera(detector, 1), policy=policy)
    assert [result.frame_id for result in results] == [0, 1]
    assert detector.stats().faults[Fault.STALLED] >= 1
    # One line, however many they were
    assert [line.partition(":")[0] for line in caplog.messages] == ["stalled (skip)"]


def test_an_engine_that_hangs_is_a_stall(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_ad.runtime.faults.LOG_INTERVAL_S", 0)  # the first stalls may come before the frames
    detector = fake_detector(MANIFEST)
    head = detector.sessions[1]
    run = head.run
    told = "stalled (skip): no result for 0.01 s: the engine hangs, 3 frames wait"

    def hangs(feeds: Any) -> Any:
        wait_until(lambda: told in caplog.messages)
        return run(feeds)

    head.run = hangs  # type: ignore[method-assign]
    _run(detector, [_image(seed) for seed in range(4)], policy=FaultPolicy(stalled="skip", stall_s=0.01))
    assert told in caplog.messages


def test_frames_that_are_all_skipped_are_no_engine_that_hangs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until no more come: each stall tells of its own time."""
    monkeypatch.setattr("edge_ad.runtime.faults.LOG_INTERVAL_S", 0)
    detector = fake_detector(MANIFEST)
    skips = re.compile(r"stalled \(skip\): no result for 0.01 s: [1-9]\d* frames came and were skipped, \d+ wait")

    def camera() -> Iterator[Any]:
        yield _image(0)
        deadline_s = time.monotonic() + 10
        while not any(map(skips.fullmatch, caplog.messages)):
            assert time.monotonic() < deadline_s, caplog.messages[-1]
            yield CHANGED["size"]
        wait_until(lambda: "the source gives no frame, or the engine hangs" in caplog.messages[-1])
        yield _image(1)

    policy = FaultPolicy(stalled="skip", stall_s=0.01, changed="skip")
    _run(detector, camera(), policy=policy)


# --- frames -----------------------------------------------------------------------------------------------------------

CHANGED = {
    "size": np.zeros((31, 37, 3), np.uint8),
    "dtype": np.zeros((*SETUP.image_size, 3), np.uint16),
    "channels": np.zeros((*SETUP.image_size, 4), np.uint8),
    "grey": np.zeros(SETUP.image_size, np.uint8),
}


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("action", ["raise", "skip", "report"])
def test_a_frame_unlike_the_first(name: str, action: str) -> None:
    detector = fake_detector(MANIFEST)
    source = [_image(0), CHANGED[name], _image(1)]
    if action == "raise":
        with pytest.raises(FrameChangedError, match=r"began with frames uint8 \(46, 58, 3\), but now gives uint"):
            _run(detector, source)
        assert detector.stats().results == 1
    else:
        results = _run(detector, source, policy=FaultPolicy(changed=action))
        assert [result.frame_id for result in results] == ([0, 2] if action == "skip" else [0, 1, 2])
        if action == "report":
            _is_error(results[1], Fault.CHANGED)
            assert results[1].original_size == CHANGED[name].shape[:2]
        assert results[-1].raw_score == detector(_image(1), color="rgb").raw_score
        stats = detector.stats()
        assert (stats.skipped, stats.reported) == ((1, 0) if action == "skip" else (0, 1))
    assert detector.stats().faults == {Fault.CHANGED: 1}


def test_another_size_may_be_accepted_and_is_seen() -> None:
    detector = fake_detector(MANIFEST)
    frame = np.random.default_rng(0).integers(0, 256, (31, 37, 3), dtype=np.uint8)
    first, second = _run(detector, [_image(0), frame], policy=FaultPolicy(changed="accept"))
    assert (first.fault, second.fault) == (None, Fault.CHANGED)
    assert "now gives uint8 (31, 37, 3)" in str(second.error)
    assert second.verdict is not Verdict.ERROR
    assert second.raw_score == detector(frame, color="rgb").raw_score


def test_after_the_camera_came_back_its_format_still_counts() -> None:
    scripts = [[_image(0)], [CHANGED["size"]], [_image(1)]]
    detector = fake_detector(MANIFEST)
    policy = FaultPolicy(source="reopen", changed="skip", reopen_attempts=1, **QUICK)
    results = detector.stream(lambda: scripts.pop(0) if scripts else [], color="rgb", policy=policy)
    assert [next(results).frame_id, next(results).frame_id] == [0, 2]
    results.close()


@pytest.mark.parametrize("frame", [np.zeros((46, 58), np.uint8), np.zeros((46, 58, 3), np.float32), "frame", 7])
@pytest.mark.parametrize("action", ["raise", "skip", "report"])
def test_what_is_no_frame_as_declared(frame: Any, action: str) -> None:
    """From the first one on: the first good frame sets the format."""
    detector = fake_detector(MANIFEST)
    if action == "raise":
        with pytest.raises(FrameError, match="expected"):
            _run(detector, [frame])
        return
    results = _run(detector, [frame, _image(0), _image(1)], policy=FaultPolicy(frame=action))
    if action == "report":
        _is_error(results.pop(0), Fault.FRAME)
    assert [result.frame_id for result in results] == [1, 2]
    assert all(result.fault is None for result in results)


def test_a_camera_of_fewer_bits_than_declared() -> None:
    """It fell back to Mono8, say."""
    detector = fake_detector(MANIFEST)
    with pytest.raises(FrameError, match="expected uint16 pixels of the declared 12 bits, but got uint8"):
        _run(detector, [_image(0)], bits=12)
    (result,) = _run(fake_detector(MANIFEST), [_image(0)], bits=12, policy=FaultPolicy(frame="report"))
    _is_error(result, Fault.FRAME)


def test_a_wrong_colour_is_a_mistake_of_the_program() -> None:
    policy = FaultPolicy(frame="skip", inference="skip", changed="skip", non_finite="skip")
    with pytest.raises(ColorError):
        fake_detector(MANIFEST).stream([_image(0)], color="gbr", policy=policy)


# --- the engine -------------------------------------------------------------------------------------------------------

ENGINE_FAULTS = {"raise": Fault.INFERENCE, "nan": Fault.NON_FINITE}
ERRORS = {"raise": (InferenceError, "device lost"), "nan": (NonFiniteOutputError, "tile r00_c00: the model gave NaN")}


@pytest.mark.parametrize("kind", ENGINE_FAULTS)
@pytest.mark.parametrize("action", ["raise", "skip", "report"])
def test_an_engine_that_fails_once(kind: str, action: str) -> None:
    detector = _faulty(fake_detector(MANIFEST), {1: kind})
    fault = ENGINE_FAULTS[kind]
    policy = FaultPolicy(**{str(fault): action})
    source = [_image(seed) for seed in range(4)]
    if action == "raise":
        error, message = ERRORS[kind]
        with pytest.raises(error, match=message):
            _run(detector, source, policy=policy)
    else:
        results = _run(detector, source, policy=policy)
        expected = [0, 2, 3] if action == "skip" else [0, 1, 2, 3]
        assert [result.frame_id for result in results] == expected
        if action == "report":
            _is_error(results.pop(1), fault)
        for result in results:
            alone = fake_detector(MANIFEST)(_image(int(str(result.frame_id))), color="rgb")
            np.testing.assert_array_equal(result.raw_map, alone.raw_map)  # nothing of the failed frame is left
            assert (result.fault, result.verdict) == (None, alone.verdict)
    assert detector.stats().faults == {fault: 1}


def _on(device: str) -> Detector:
    detector = fake_detector(MANIFEST)
    for session in detector.sessions:
        session.device = device
    return detector


def test_a_lost_device_is_replaced_for_good() -> None:
    """It would work again for frame 3: an engine that failed is not trusted."""
    detector, standby = _faulty(_on("GPU.0"), {2: "raise"}), _on("CPU")
    results = _run(
        detector, [_image(seed) for seed in range(5)], policy=FaultPolicy(inference="fall_back"), standby=standby
    )
    assert [result.device for result in results] == ["GPU.0", "GPU.0", "CPU", "CPU", "CPU"]
    assert [result.fault for result in results] == [None, None, *[Fault.INFERENCE] * 3]
    assert [result.error for result in results[2:]] == ["device lost"] * 3
    for seed, result in enumerate(results):
        assert result.raw_score == fake_detector(MANIFEST)(_image(seed), color="rgb").raw_score
    stats = detector.stats()
    assert (stats.substituted, stats.reported, stats.faults) == (3, 0, {Fault.INFERENCE: 1})


def test_a_changed_frame_that_falls_back_is_counted_once() -> None:
    detector, standby = _faulty(_on("GPU.0"), {1: "raise"}), _on("CPU")
    larger = np.zeros((2 * MANIFEST.setup.image_size[0], MANIFEST.setup.image_size[1], 3), np.uint8)
    policy = FaultPolicy(inference="fall_back", changed="accept")
    _run(detector, [_image(0), larger], policy=policy, standby=standby)
    assert detector.stats().faults == {Fault.CHANGED: 1, Fault.INFERENCE: 1}


def test_nan_is_replaced_for_its_frame() -> None:
    detector, standby = _faulty(_on("GPU.0"), {1: "nan"}), _on("CPU")
    results = _run(
        detector, [_image(seed) for seed in range(3)], policy=FaultPolicy(non_finite="fall_back"), standby=standby
    )
    assert [result.device for result in results] == ["GPU.0", "CPU", "GPU.0"]
    assert [result.fault for result in results] == [None, Fault.NON_FINITE, None]
    assert results[1].verdict is not Verdict.ERROR
    assert detector.stats().substituted == 1


@pytest.mark.parametrize("kind", ENGINE_FAULTS)
def test_a_standby_that_fails_too_raises(kind: str) -> None:
    detector, standby = _faulty(_on("GPU.0"), {1: kind}), _faulty(_on("CPU"), {0: kind})
    fault = ENGINE_FAULTS[kind]
    error, message = ERRORS[kind]
    with pytest.raises(error, match=message):
        _run(
            detector,
            [_image(0), _image(1)],
            policy=FaultPolicy(**{str(fault): "fall_back"}),
            standby=standby,
        )
    assert detector.stats().faults == {fault: 2}
    assert detector.stats().substituted == 0


def test_a_standby_may_report() -> None:
    detector, standby = _faulty(_on("GPU.0"), {0: "raise"}), _faulty(_on("CPU"), {1: "nan"})
    policy = FaultPolicy(inference="fall_back", non_finite="report")
    results = _run(detector, [_image(seed) for seed in range(3)], policy=policy, standby=standby)
    assert [result.fault for result in results] == [Fault.INFERENCE, Fault.NON_FINITE, Fault.INFERENCE]
    assert [result.verdict is Verdict.ERROR for result in results] == [False, True, False]
    assert [result.device for result in results] == ["CPU"] * 3


def test_a_standby_reports_what_is_no_frame_of_its_stream_too() -> None:
    detector, standby = _faulty(_on("GPU.0"), {0: "raise"}), _on("CPU")
    policy = FaultPolicy(inference="fall_back", frame="report", changed="report")
    source = [np.zeros((3, 3)), _image(0), CHANGED["size"]]
    results = _run(detector, source, policy=policy, standby=standby)
    assert [(result.fault, result.device) for result in results] == [
        (Fault.FRAME, "GPU.0"),
        (Fault.INFERENCE, "CPU"),
        (Fault.CHANGED, "CPU"),
    ]


def test_a_closed_detector_is_no_fault_of_the_engine() -> None:
    detector = fake_detector(MANIFEST)
    policy = FaultPolicy(inference="report", non_finite="skip")
    stream = detector.stream((_image(0) for _ in range(100)), color="rgb", policy=policy)
    next(stream)
    detector.close()
    with pytest.raises(DetectorClosedError):
        list(stream)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["pred_score", "anomaly_map"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_no_number_is_never_normal(poison: float, name: str) -> None:
    """In any tile, at the first or last pixel, by call and by stream."""
    for tile in range(4):
        detector = fake_detector(MANIFEST)
        head = detector.sessions[1 + tile]
        run = head.run

        def poisoned(feeds: Any, run: Any = run, index: int = -(tile % 2)) -> Any:
            outputs = {key: value.copy() for key, value in run(feeds).items()}
            outputs[name].reshape(-1)[index] = poison
            return outputs

        head.run = poisoned  # type: ignore[method-assign]
        with pytest.raises(NonFiniteValuesError):
            detector(_image(0), color="rgb")
        (result,) = _run(detector, [_image(0)], policy=FaultPolicy(non_finite="report"))
        _is_error(result, Fault.NON_FINITE)


def test_an_error_result_can_be_drawn_and_has_no_false_number() -> None:
    detector = _faulty(fake_detector(MANIFEST), {0: "raise"})
    (result,) = _run(detector, [_image(0)], policy=FaultPolicy(inference="report"))
    drawn = overlay.draw(result, detector.grid)
    assert drawn.shape == _image(0).shape
    with pytest.raises(ValueError, match="not JSON compliant"):
        json.dumps(result.pred_score, allow_nan=False)


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(["good", "none", "size", "raise", "nan"]), max_size=30),
    st.sampled_from(["skip", "report"]),
    st.integers(1, 4),
)
def test_every_frame_is_accounted_for(script: list[str], action: str, queue_size: int) -> None:
    """Whatever happens in whatever order: each captured frame has one result, its own, or is counted."""
    script = ["good", *script]  # sets the format, so that those of another size do not reach the engine
    inspected = [kind for kind in script if kind in ("good", "raise", "nan")]
    detector = _faulty(fake_detector(MANIFEST), {i: kind for i, kind in enumerate(inspected) if kind != "good"})
    policy = FaultPolicy(no_frame="skip", changed=action, inference=action, non_finite=action)
    frames = {"none": None, "size": CHANGED["size"]}
    results = _run(detector, [frames.get(kind, _image(0)) for kind in script], policy=policy, queue_size=queue_size)
    stats = detector.stats()
    captured = [kind for kind in script if kind != "none"]
    bad = len(captured) - captured.count("good")
    assert stats.captured == len(captured)
    assert (stats.skipped, stats.reported) == ((bad, 0) if action == "skip" else (0, bad))
    expected = [i for i, kind in enumerate(captured) if action == "report" or kind == "good"]
    assert [result.frame_id for result in results] == expected
    assert [result.verdict is Verdict.ERROR for result in results] == [captured[i] != "good" for i in expected]
    names = {"none": Fault.NO_FRAME, "size": Fault.CHANGED, **ENGINE_FAULTS}
    assert stats.faults == Counter(names[kind] for kind in script if kind != "good")


# --- counting and logging ---------------------------------------------------------------------------------------------


def test_each_kind_is_logged_at_once_and_then_seldom(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [1000.0]
    ledger = Ledger(lambda: now_s[0])
    with caplog.at_level(logging.WARNING, "edge_ad.runtime"):
        for _ in range(600):
            ledger.fault(Fault.NON_FINITE, Action.REPORT, "frame 7: NaN")
            now_s[0] += LOG_INTERVAL_S / 256
        ledger.fault(Fault.INFERENCE, Action.FALL_BACK, "frame 8: device lost")
        ledger.fault(Fault.FRAME, Action.RAISE, "its error says it")
    assert caplog.messages == [
        "non_finite (report): frame 7: NaN",
        "non_finite (report): frame 7: NaN (255 more since the last line)",
        "non_finite (report): frame 7: NaN (255 more since the last line)",
        "inference (fall_back): frame 8: device lost",
    ]
    assert ledger.stats().faults == {Fault.NON_FINITE: 600, Fault.INFERENCE: 1, Fault.FRAME: 1}


def test_each_stream_counts_and_logs_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Two cameras on one detector: the faults of one do not keep those of the other out of the log."""
    detector = fake_detector(tiny_manifest())
    policy = FaultPolicy(no_frame="skip")
    streams = [
        detector.stream(iter([None, *[some_image(SETUP)] * count]), color="rgb", policy=policy, name=name)
        for name, count in (("left", 2), ("right", 3), (None, 1))
    ]
    with caplog.at_level(logging.WARNING, "edge_ad.runtime"):
        assert [len(list(stream)) for stream in streams] == [2, 3, 1]
    assert [message.partition(" (skip)")[0] for message in caplog.messages] == [
        "left: no_frame",
        "right: no_frame",
        "no_frame",
    ]
    assert [(stream.stats().results, stream.stats().faults) for stream in streams] == [
        (count, {Fault.NO_FRAME: 1}) for count in (2, 3, 1)
    ]
    assert (detector.stats().results, detector.stats().faults) == (6, {Fault.NO_FRAME: 3})


def test_a_signals_handler_may_ask_for_counts() -> None:
    """It runs in the thread it interrupts, which may be counting."""
    asked = []

    def now_s() -> float:
        asked.append(ledger.stats().faults)
        return 0.0

    ledger = Ledger(now_s)
    thread = threading.Thread(target=ledger.fault, args=(Fault.FRAME, Action.SKIP, ""), daemon=True)
    thread.start()
    thread.join(10)
    assert asked == [{Fault.FRAME: 1}]


def test_counts_from_many_threads() -> None:
    ledger = Ledger()

    def work() -> None:
        for _ in range(1000):
            ledger.count("captured")
            ledger.fault(Fault.FRAME, Action.RAISE, "")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (ledger.stats().captured, ledger.stats().faults) == (4000, {Fault.FRAME: 4000})


# --- self-test --------------------------------------------------------------------------------------------------------


def test_a_device_that_computes_garbage_is_caught(tiny_bundle: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third head answers with the gain of another one, as after a driver's bug: scores shift, nothing raises."""
    from edge_ad.runtime import loading

    opened: list[FakeSession] = []

    def open_fake(files: GraphFiles, *args: Any, batch_size: int, **more: Any) -> FakeSession:
        session = session_of(SETUP, files, batch_size)
        if is_broken and session.location == SETUP.model_locations[2]:
            session.location = SETUP.model_locations[3]
        opened.append(session)
        return session

    monkeypatch.setattr(loading, "open_session", open_fake)
    bundle = tiny_bundle()
    is_broken = False
    edge_ad.load(bundle, self_test=True)
    assert all(session.calls == (8 if session.location is None else 2) for session in opened)  # two golden images
    is_broken = True
    opened.clear()
    assert edge_ad.load(bundle)(read_image(bundle / "golden/anomalous.png"), color="rgb").fault is None  # unnoticed
    with pytest.raises(
        VerificationError,
        match=r"on CPU in f32 .* anomalous score: expected 0.8925, but got 0.935278",
    ):
        edge_ad.load(bundle, self_test=True)
    assert all(session.closed for session in opened[5:])


def test_a_device_that_gives_nan_fails_its_self_test(tiny_bundle: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "edge_ad.runtime.openvino_session.OpenvinoSession.fetch",
        lambda self, handle: np.full_like(handle.data, np.nan),
    )
    with pytest.raises(NonFiniteOutputError):
        edge_ad.load(tiny_bundle(), self_test=True)


def test_nothing_of_a_stream_waits_for_the_garbage_collector() -> None:
    """An exception holds its frames, and they hold images: such a cycle would look like a leak for minutes."""

    def camera() -> Iterator[Any]:
        yield from (_image(0), None, CHANGED["size"], _image(1), _image(2))
        raise OSError("cable pulled")

    def left() -> list[str]:
        kinds = (Captured, Background, Result, OSError, FrameError, InferenceError)
        return [type(each).__name__ for each in gc.get_objects() if issubclass(type(each), kinds)]

    gc.collect()
    gc.disable()
    try:
        before = left()
        for action in ("report", "skip", "fall_back"):
            for source in ("raise", "reopen"):
                detector = _faulty(fake_detector(MANIFEST), {1: "raise", 2: "nan"})
                attempts = 1 if source == "reopen" else None
                policy = FaultPolicy(
                    "skip", source, "raise", "raise", "skip", action, action, reopen_attempts=attempts, **QUICK
                )
                standby = fake_detector(MANIFEST) if action == "fall_back" else None
                scripts = [camera()]
                frames = detector.stream(
                    lambda scripts=scripts: scripts.pop() if scripts else [],
                    color="rgb",
                    policy=policy,
                    standby=standby,
                )
                with pytest.raises((OSError, SourceError)):
                    list(frames)
                del detector, standby, frames
        assert left() == before
    finally:
        gc.enable()
