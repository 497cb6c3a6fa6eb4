from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_session import FakeSession
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import some_image, tiny_manifest, tiny_setup

import edge_ad
from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import FileEntry, Format, Graph, Precision, Role
from edge_ad.errors import InferenceError, InputError
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.faults import Fault, FaultPolicy
from edge_ad.runtime.residency import (
    LOADED_PER_STORED,
    Opener,
    loaded_bytes,
    open_in_turns,
    open_together,
    parse_bytes,
    turn_takers,
)
from edge_ad.runtime.session import Session

Write = Callable[..., Path]


def _graph(size_bytes: int) -> Graph:
    return Graph(Role.HEAD, (0, 0), Precision.FP32, (FileEntry("a", "", size_bytes),), False, 0, 0)


@pytest.mark.parametrize("text", ["", "MB", "-1", "1TB", "1e3", "much"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="memory_budget: expected bytes, or a size such as '300MB'"):
        parse_bytes(text)


def test_takers_by_hand() -> None:
    """Extractor of 10, nine heads of 20, each taken four times: 40 + 9 x 80 = 760."""
    shared, heads = _graph(10), [_graph(20)] * 9
    assert turn_takers(shared, heads, 760) == []
    assert turn_takers(shared, heads, 759) == [0, 3, 6]  # six stay, two places for the other three
    assert turn_takers(shared, heads, 520) == [0, 1, 3, 5, 7]  # four stay
    assert turn_takers(shared, heads, 200) == [*range(9)]  # none: the two places alone
    with pytest.raises(InputError, match=r"hold not even the extractor and two heads; the least that works"):
        turn_takers(shared, heads, 199)
    assert turn_takers(None, heads, 160) == [*range(9)]


@given(st.integers(1, 30), st.integers(0, 50), st.integers(1, 50), st.integers(0, 10_000))
def test_the_budget_holds_what_stays_and_two_more(count: int, shared: int, head: int, budget: int) -> None:
    graph, heads = _graph(shared), [_graph(head)] * count
    try:
        takers = turn_takers(graph, heads, budget)
    except InputError as error:
        assert budget < LOADED_PER_STORED * (shared + min(2, count) * head)
        turn_takers(graph, heads, parse_bytes(str(error).split(" is ")[1]))  # what it names, typed back
        return
    loaded = count - len(takers) + (2 if takers else 0)
    assert loaded_bytes(graph) + loaded * loaded_bytes(heads[0]) <= budget
    assert sorted(set(takers)) == takers
    assert set(takers) <= set(range(count))


class _Shelf:
    """Opens fake heads and watches how many are open."""

    def __init__(self) -> None:
        self.open = self.most = 0
        self.opened: list[tuple[int, str]] = []  # and by which thread
        self.broken: set[int] = set()
        self.lock = threading.Lock()

    def openers(self) -> list[Opener]:
        return [lambda aside, index=index: self._open(index) for index in range(4)]  # type: ignore[misc]

    def _open(self, index: int) -> FakeSession:
        with self.lock:
            self.opened.append((index, threading.current_thread().name))
            if index in self.broken:
                raise InferenceError("disk on fire")
            self.open += 1
            self.most = max(self.most, self.open)
        session = FakeSession((23, 29), tiny_setup().model_locations[index])
        close = session.close

        def close_once() -> None:
            if not session.closed:
                with self.lock:
                    self.open -= 1
            close()

        session.close = close_once  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize(("takers", "most"), [([], 4), ([1, 3], 4), ([0, 1, 3], 3), ([0, 1, 2, 3], 2)])
def test_results_are_the_same_and_few_are_open(takers: list[int], most: int) -> None:
    manifest = tiny_manifest()
    shelf = _Shelf()
    heads = open_in_turns(shelf.openers(), takers)
    with Detector(manifest, FakeSession((23, 29), None), heads) as detector:
        plain = [FakeSession((23, 29), at) for at in manifest.setup.model_locations]
        expected = Detector(manifest, FakeSession((23, 29), None), plain)
        for seed in range(3):
            image = some_image(manifest.setup, seed)[None]
            np.testing.assert_array_equal(detector.raw(image).maps, expected.raw(image).maps)
        if takers:
            ahead = {index for index, thread in shelf.opened if thread.startswith("edge-ad-prefetch")}
            assert ahead == set(takers)
            assert [index for index, thread in shelf.opened if thread == "MainThread"] == [0, 1, 2, 3, takers[0]]
    assert (shelf.most, shelf.open) == (most, 0)
    with pytest.raises(InferenceError, match="closed"):
        heads[-1].run({})


@pytest.mark.parametrize("at_once", [1, 2])
def test_heads_opened_together_keep_their_order(at_once: int) -> None:
    shelf = _Shelf()
    heads = open_together(shelf.openers(), at_once)
    first, *others = shelf.opened
    assert first == (0, "MainThread")
    assert sorted(index for index, _ in others) == [1, 2, 3]
    assert len({thread for _, thread in others}) <= at_once
    feeds = {"image": np.zeros((1, 23, 29, 3), np.uint8), "features": np.zeros((1, 1, 23, 29), np.float32)}
    scores = [head.fetch(head.run(feeds)["pred_score"])[0] for head in heads]
    assert scores == pytest.approx([0, 0.01, 0.1, 0.11])  # the offsets of tiny_bundle.py


@pytest.mark.parametrize("broken", [{0}, {3}, {1, 2}])
def test_of_heads_opened_together_none_stays_where_one_fails(broken: set[int]) -> None:
    shelf = _Shelf()
    shelf.broken = broken
    with pytest.raises(InferenceError, match="disk on fire"):
        open_together(shelf.openers(), 2)
    assert shelf.open == 0


def test_where_one_fails_the_rest_is_not_opened() -> None:
    shelf = _Shelf()
    shelf.broken = {1}
    first, failing, other, _ = shelf.openers()

    def slow(aside: bool) -> Session:
        time.sleep(0.01)
        return other(aside)

    with pytest.raises(InferenceError, match="disk on fire"):
        open_together([first, failing, *[slow] * 50], 1)
    assert shelf.open == 0
    assert len(shelf.opened) < 25


def test_heads_in_another_order() -> None:
    heads = open_in_turns((shelf := _Shelf()).openers(), range(4))
    feeds = {"image": np.zeros((1, 23, 29, 3), np.uint8), "features": np.zeros((1, 1, 23, 29), np.float32)}
    for index in (2, 2, 0, 3, 1, 1, 0):
        scores = heads[index].fetch(heads[index].run(feeds)["pred_score"])
        assert scores[0] == pytest.approx((0, 0.01, 0.1, 0.11)[index])  # the offsets of tiny_bundle.py
    heads[0].close()
    assert (shelf.most, shelf.open) == (2, 0)


def test_a_graph_that_fails_later_is_an_error_of_its_turn() -> None:
    heads = open_in_turns((shelf := _Shelf()).openers(), range(4))
    feeds = {"image": np.zeros((1, 23, 29, 3), np.uint8), "features": np.zeros((1, 1, 23, 29), np.float32)}
    shelf.broken = {1}
    heads[0].run(feeds)
    with pytest.raises(InferenceError, match="disk on fire"):
        heads[1].run(feeds)
    heads[2].run(feeds)
    shelf.broken = {3}
    heads[0].close()
    assert shelf.open == 0


def test_a_graph_that_cannot_be_opened_closes_the_others() -> None:
    shelf = _Shelf()
    shelf.broken = {2}
    with pytest.raises(InferenceError, match="disk on fire"):
        open_in_turns(shelf.openers(), [0, 3])
    assert shelf.open == 0


@pytest.mark.parametrize("graph_format", Format)
def test_a_budget_for_a_bundle(tiny_bundle: Write, graph_format: Format) -> None:
    bundle = tiny_bundle(graph_format=graph_format)
    manifest = read_bundle(bundle).manifest
    assert manifest.shared is not None
    least = loaded_bytes(manifest.shared) + 2 * max(loaded_bytes(head) for head in manifest.heads)
    image = some_image(manifest.setup)
    with edge_ad.load(bundle, precision="f32") as plain:
        expected = plain(image, color="rgb").raw_map
    for budget in (least, least + 10**6, f"{least / 1000 + 1:.0f}KB"):
        with edge_ad.load(bundle, precision="f32", memory_budget=budget, self_test=True) as detector:
            results: list[Any] = list(detector.stream([image] * 3, color="rgb"))
            for result in results:
                np.testing.assert_array_equal(result.raw_map, expected)
    with pytest.raises(InputError, match=r"memory_budget: .* hold not even the extractor and two heads; the least"):
        edge_ad.load(bundle, memory_budget=least - 1)


@pytest.mark.parametrize("tenths", [3, 29, 41, 333, 5803])
def test_the_least_budget_is_rounded_up_and_read_back_exactly(tenths: int) -> None:
    """From one tenth of a megabyte to the next, the least is the next."""
    for stored in (tenths * 25_000, tenths * 25_000 - 24_999):
        with pytest.raises(InputError, match=rf"hold not even the extractor and its head; .* is {tenths / 10} MB$"):
            turn_takers(None, [_graph(stored)], 0)
    assert parse_bytes(f"{tenths / 10} MB") == tenths * 100_000


@pytest.mark.parametrize("action", ["raise", "report", "fall_back"])
def test_a_bundle_that_is_gone_is_a_fault_of_the_engine(tiny_bundle: Write, tmp_path: Path, action: str) -> None:
    bundle = tiny_bundle(graph_format=Format.ONNX)
    manifest = read_bundle(bundle).manifest
    assert manifest.shared is not None
    least = loaded_bytes(manifest.shared) + 2 * max(loaded_bytes(head) for head in manifest.heads)
    frames = [some_image(manifest.setup)] * 2
    policy = FaultPolicy(inference=action)
    with edge_ad.load(bundle, memory_budget=least) as detector, edge_ad.load(bundle) as standby:
        bundle.rename(tmp_path / "elsewhere")
        with pytest.raises(InferenceError, match="cannot be read: No such file or directory; copy the bundle anew"):
            detector(frames[0], color="rgb")
        stream = detector.stream(frames, color="rgb", policy=policy, standby=standby if "fall" in action else None)
        if action == "raise":
            with pytest.raises(InferenceError, match="cannot be read"):
                list(stream)
        else:
            results = list(stream)
            assert [result.fault for result in results] == [Fault.INFERENCE] * 2
            assert [result.verdict == "error" for result in results] == [action == "report"] * 2


def test_one_head_for_all_tiles_takes_no_turns() -> None:
    graph = replace(_graph(5), files=(FileEntry("a", "", 3), FileEntry("b", "", 2)))
    assert turn_takers(None, [graph], 20) == []


def test_a_cache_that_cannot_be_written_is_told_and_done_without(
    tiny_bundle: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    bundle = tiny_bundle()
    with edge_ad.load(bundle, cache_dir=tmp_path / "file") as detector:
        image = some_image(tiny_setup())[None]
        scores = detector.raw(image).scores
    (record,) = caplog.records
    assert record.getMessage().endswith("(File exists); compiled graphs are not kept")
    with edge_ad.load(bundle, cache_dir=tmp_path / "new") as detector:
        np.testing.assert_array_equal(detector.raw(image).scores, scores)
    assert list((tmp_path / "new").iterdir())
    assert len(caplog.records) == 1
