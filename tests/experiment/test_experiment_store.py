from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from experiment_fakes import bundle_outcome, outcome, record

from edge_ad.errors import OutputWriteError, ParityError, ResultsError
from edge_ad.evaluation.spro import SproMetrics
from edge_ad.experiment.config import Variant
from edge_ad.experiment.record import Failure
from edge_ad.experiment.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "new" / "results.jsonl")


def test_nothing_there_is_no_result(store: Store):
    store.repair()
    assert store.read() == {}
    assert not store.path.exists()


def test_lines_come_back_exactly(store: Store):
    written = [
        record(),
        record(outcome(0.123456789, None), category="casting"),
        record(bundle_outcome(), precision=Variant.INT8),
        record(ParityError("off\nby a lot"), seed=7),
    ]
    for each in written:
        store.append(each)
    assert store.read() == {each.identity: each for each in written}
    assert written[3].failure == Failure("ParityError", "off by a lot")
    assert len(store.path.read_text().splitlines()) == 4


def test_the_last_of_several_lines_counts(store: Store):
    store.append(record(ParityError("no")))
    store.append(record(outcome(0.5)))
    (found,) = store.read().values()
    assert found.outcome == outcome(0.5)


@pytest.mark.parametrize("kept", [1, 0])
def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(store: Store, kept: int):
    first, torn = record(seed=0), record(seed=1)
    for each in (first, torn)[1 - kept :]:
        store.append(each)
    content = store.path.read_bytes()
    whole = content.index(b"\n") + 1 if kept else 0
    for length in (whole + 1, (whole + len(content)) // 2, len(content) - 1):
        store.path.write_bytes(content[:length])
        assert [each.seed for each in store.read()] == [0] * kept
        store.repair()
        assert store.path.read_bytes() == content[:whole]
        store.append(record(seed=2))
        assert [each.seed for each in store.read()] == [0] * kept + [2]


def test_repair_leaves_whole_lines_alone(store: Store):
    store.append(record())
    content = store.path.read_bytes()
    store.repair()
    assert store.path.read_bytes() == content


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "results.jsonl:1 is damaged"),
        ("[]", "schema_version None"),
        ('{"schema_version": 99}', "schema_version 99"),
        ('{"schema_version": 1}', "missing identity"),
        ('{"schema_version": 2}', "missing identity"),
    ],
)
def test_a_damaged_line_is_named(store: Store, line: str, said: str):
    store.append(record())
    store.path.write_text(line + "\n" + store.path.read_text())
    with pytest.raises(ResultsError, match=said):
        store.read()


def test_lines_of_the_schema_before_are_read_and_lack_what_was_not_measured_then(store: Store):
    store.path.parent.mkdir()
    store.path.write_bytes(Path(__file__).with_name("results_schema1.jsonl").read_bytes())
    expected = [
        record(outcome(0.9, aupro_by_defect=None)),
        record(bundle_outcome(0.8, None), precision=Variant.INT8),
        record(ParityError("no"), seed=7),
    ]
    found = store.read()
    assert [each.outcome for each in found.values()] == [each.outcome for each in expected]
    assert [each.identity for each in found.values()] == [each.identity for each in expected]
    store.append(record(outcome(0.5)))  # both schemas in one file
    assert len(store.read()) == 3
    assert [json.loads(line)["schema_version"] for line in store.path.read_text().splitlines()] == [1, 1, 1, 2]


def test_what_was_measured_by_kind_comes_back(store: Store):
    spro = SproMetrics(0.7, {"logical": 0.6, "structural": 0.8}, 0.05, 9)
    store.append(record(outcome(spro=spro, aupro_by_defect={"logical": 0.1, "structural": 0.2})))
    (found,) = store.read().values()
    assert found.outcome is not None
    assert found.outcome.spro == spro
    assert found.outcome.aupro_by_defect == {"logical": 0.1, "structural": 0.2}


def test_a_number_that_is_not_finite_is_never_written(store: Store):
    with pytest.raises(ValueError, match="JSON"):
        store.append(record(outcome(float("nan"))))
    assert store.read() == {}


def test_a_full_disk_is_one_known_error(store: Store, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputWriteError, match="No space left"):
        store.append(record())


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputWriteError) as caught:
        Store(tmp_path / "file" / "results.jsonl").append(record())
    assert str(caught.value).count("cannot write") == 1


def test_a_line_tells_what_it_is_about(store: Store):
    store.append(record())
    plain = json.loads(store.path.read_text())
    assert plain["identity"]["category"] == "nut"
    assert plain["outcome"]["image"]["auroc"] == 0.9
    assert plain["outcome"]["images"][1] == {
        "path": "test/x/1.png",
        "label": 1,
        "defect": "x",
        "score": 0.75,
        "defect_area": 0.02,
    }
