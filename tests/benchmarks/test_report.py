import json
import re
from pathlib import Path

import pytest
from benchmark_fakes import HEAD_BYTES, SHARED_BYTES, make_manifest, make_report

from edge_ad.benchmarks.protocol import Protocol
from edge_ad.benchmarks.rendering import tables, to_html, to_markdown, to_text
from edge_ad.benchmarks.report import BenchmarkReport, bundle_facts
from edge_ad.errors import InputError
from edge_ad.setups import Sharing

KEYS = Path(__file__).with_name("report_keys.txt")


def key_paths(value, prefix=""):
    """Every path of keys; lists by their first item."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from key_paths(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from key_paths(value[0], f"{prefix}[]")
    else:
        yield prefix


def test_json_there_and_back():
    report = make_report()
    assert BenchmarkReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_a_report_of_before_the_cache_is_read():
    written = make_report().to_json() | {"schema_version": 2}
    del written["config"]["has_cache"]
    report = BenchmarkReport.from_json(written)
    assert not report.config.has_cache
    assert report.latency == make_report().latency


def test_the_format_is_the_golden_one():
    """To change the format on purpose, write the new paths to report_keys.txt and raise SCHEMA_VERSION."""
    assert sorted(key_paths(make_report().to_json())) == KEYS.read_text().split()


def test_everything_measured_has_its_unit_in_its_name():
    unit = re.compile(r"(_ms|_ms\[\]|_bytes|_per_s|_percent|_ratio|size)$")
    measured = [
        key for key in key_paths(make_report().to_json()) if re.match(r"(summary|memory|latency|achieved)", key)
    ]
    assert [key for key in measured if not unit.search(key)] == ["achieved.ceiling"]


def test_the_summary_by_hand():
    summary = make_report().summary
    assert summary["latency_mean_ms"] == 5.0
    assert summary["latency_stdev_ms"] == 1.0
    assert summary["bare_ratio"] == 5.0 / 4.0
    assert summary["cold_start_ms"] == 129.0
    assert summary["throughput_images_per_s"] == pytest.approx(16 * 2 / 0.080)
    assert summary["ceiling_percent"] == 25.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "expected an object with schema_version 2 or 3"),
        ({"surprise": 1}, "benchmark report: unknown surprise"),
        ({"load_ms": "fast"}, r"benchmark report\.load_ms: expected float, but got 'fast'"),
    ],
)
def test_other_reports_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        BenchmarkReport.from_json(make_report().to_json() | change)


@pytest.mark.parametrize("value", [None, [], "report"])
def test_what_is_no_report_is_refused(value):
    with pytest.raises(InputError, match="expected an object"):
        BenchmarkReport.from_json(value)


@pytest.mark.parametrize(("sharing", "models"), [(Sharing.LOCATION, 4), (Sharing.ALL, 1)])
def test_the_cost_of_a_bundle(sharing, models):
    facts = bundle_facts(make_manifest(sharing=sharing), "hash", 10)
    assert (facts.tiles, facts.models) == (4, models)
    assert facts.parameters == 1300 + models * 11
    assert (facts.shared_size_bytes, facts.heads_size_bytes) == (SHARED_BYTES, models * HEAD_BYTES)
    assert facts.size_bytes == 10 + SHARED_BYTES + models * HEAD_BYTES


def test_shortened_runs_are_marked_everywhere():
    report = make_report(warmup=3, iterations=7)
    assert report.protocol is Protocol.SHORTENED
    assert report.to_json()["protocol"] == "shortened"
    for text in (to_text(report), to_markdown(report), to_html(report)):
        assert "Shortened EfficientAD protocol: batch 1, 3 warm-up runs, mean of the next 7" in text
        assert "do not compare these figures with published ones" in text
    assert "Shortened" not in to_text(make_report())


def test_warnings_say_which_runs_they_doubt():
    warnings = make_report().warnings
    assert "latency: only 3 timed runs: p95 and p99 mean little below 100" in warnings
    assert any(text.startswith("throughput: the standard deviation") for text in warnings)


def test_the_definition_stands_above_the_numbers():
    lines = to_text(make_report()).splitlines()
    assert lines[0].startswith(
        "EfficientAD protocol: batch 1, 1000 warm-up runs, mean of the next 1000; the clock runs"
    )
    assert lines[0].endswith("(tiling, 4 tiles, merging, seams).")
    assert lines[2].split()[:3] == ["latency,", "ms", "mean"]
    assert " ".join(lines[3].split()) == "end to end 5.000 5.000 5.900 5.980 4.000 6.000 1.000 3"


def test_all_three_outputs_hold_the_same_cells():
    report = make_report()
    text, markdown, html = to_text(report), to_markdown(report), to_html(report)
    for table in tables(report):
        for row in table.rows:
            assert f"| {' | '.join(row)} |" in markdown
            for cell in row:
                assert cell in text
                assert cell.replace("<", "&lt;").replace(">", "&gt;") in html


def test_the_page_refers_to_nothing_outside_it():
    html = to_html(make_report())
    assert "<svg" in html
    assert "&lt;CPU&gt;" in html
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?!data:|#)|@import|url\(|<script|<link", html)
