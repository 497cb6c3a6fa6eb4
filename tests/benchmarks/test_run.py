import json
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmark_fakes import make_detector, make_manifest
from click.testing import CliRunner

import edge_ad
from edge_ad.benchmarks.ceilings import Ceilings, ComputeCeiling
from edge_ad.benchmarks.report import BenchmarkReport
from edge_ad.benchmarks.run import run_benchmark
from edge_ad.bundle.files import file_entry, write_manifest
from edge_ad.bundle.manifest import Golden
from edge_ad.cli import group
from edge_ad.errors import BundleNotFoundError, GateError, InputError, OutputWriteError


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A folder with a manifest; loading it gives sessions that only count, kept in ``bundle.detectors``."""
    folder = tmp_path / "bolt.edgead"
    folder.mkdir()
    write_manifest(folder, make_manifest())
    detectors = []

    def load(path, device, *, precision, batch_size=1, require_signature=None, **options):
        assert path == folder
        detectors.append((make_detector(make_manifest(), batch_size), device, str(precision), *options.values()))
        return detectors[-1][0]

    monkeypatch.setattr(edge_ad, "load", load, raising=False)
    measured = Ceilings((ComputeCeiling("int8", 8.0, "test"), ComputeCeiling("f32", 2.0, "test")), 5.0)
    monkeypatch.setattr("edge_ad.benchmarks.run.measure_ceilings", lambda *_: measured)
    return folder, detectors


def invoke(*arguments):
    # Through the group: a command called alone keeps the help option it then made, and docs/cli.md would look stale
    return CliRunner().invoke(group, ["benchmark", *(str(argument) for argument in arguments)])


def test_a_whole_run(bundle):
    folder, detectors = bundle
    told = []
    report = run_benchmark(
        folder, "NOWHERE", threads=2, warmup=2, iterations=3, batch=5, progress=lambda *step: told.append(step)
    )
    assert [(detector.batch_size, *rest) for detector, *rest in detectors] == [
        (1, "NOWHERE", "auto", 2, None, None),
        (5, "NOWHERE", "auto", 2, None, None),
    ]
    assert all(session.closed for detector, *_ in detectors for session in detector.sessions)
    first, second = (detector.shared.seen for detector, *_ in detectors)
    assert len(first) == 4 * (1 + 3 * (2 + 3))  # first inference; then end to end, bare and call per round
    assert len(second) == 4 * (10 + 3)
    assert report.latency.end_to_end.count == report.throughput.runs.count == 3
    assert report.executed == {"shared": "bf16", "heads": "f32"}
    assert report.environment.device == "NOWHERE"
    assert report.config.bundle == "bolt.edgead"
    assert report.config.frame.startswith("uniform noise, seed 0")
    assert (5, 5, "latency") in told
    assert (13, 13, "throughput") in told
    assert BenchmarkReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_the_normal_golden_image_is_fed_where_there_is_one(bundle):
    from edge_ad.imaging import write_png

    folder, detectors = bundle
    image = np.random.default_rng(3).integers(0, 256, (34, 38, 3), dtype=np.uint8)
    write_png(folder / "good.png", image)
    golden = Golden("normal", file_entry(folder, "good.png"), 0.0)
    manifest = make_manifest()
    write_manifest(folder, type(manifest)(**{**vars(manifest), "golden": (golden,)}))
    report = run_benchmark(folder, warmup=0, iterations=1, batch=0)
    assert report.config.frame == "the bundle's normal golden image"
    np.testing.assert_array_equal(detectors[0][0].shared.seen[0][0], image[:17, :19])


def test_batch_0_skips_throughput(bundle):
    folder, detectors = bundle
    report = run_benchmark(folder, warmup=0, iterations=1, batch=0)
    assert len(detectors) == 1
    assert report.throughput is None
    assert report.memory.resident_peak_throughput_bytes is None
    assert BenchmarkReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("option", ["iterations", "throughput_iterations"])
@pytest.mark.parametrize("count", [0, -1])
def test_zero_iterations_are_refused_before_anything_is_loaded(bundle, option, count):
    folder, detectors = bundle
    with pytest.raises(InputError, match=f"at least 1 timed run, but got {count}"):
        run_benchmark(folder, **{option: count})
    assert not detectors


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleNotFoundError, match="is not a bundle"):
        run_benchmark(tmp_path)


QUICK = ("--warmup", 1, "--iterations", 2, "--batch", 3)


def test_the_command_prints_the_tables(bundle):
    result = invoke(bundle[0], *QUICK)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Shortened EfficientAD protocol: batch 1, 1 warm-up runs, mean of the next 2;")
    assert "images/s at batch 3" in result.stdout


def test_json_on_stdout_is_nothing_but_json(bundle):
    result = invoke(bundle[0], *QUICK, "--json", "-")
    assert BenchmarkReport.from_json(json.loads(result.stdout)).latency.end_to_end.count == 2


def test_files_are_written(bundle, tmp_path):
    paths = [tmp_path / "out" / name for name in ("r.json", "r.md", "r.html")]
    result = invoke(
        bundle[0], *QUICK, *("--json", paths[0]), *("--markdown", paths[1]), *("--html", paths[2]), *("--batch", 0)
    )
    assert result.exit_code == 0, result.output
    assert BenchmarkReport.from_json(json.loads(paths[0].read_text())).throughput is None
    assert paths[1].read_text().startswith("# Benchmark of bolt.edgead\n")
    assert "<title>Benchmark of bolt.edgead</title>" in paths[2].read_text()


@pytest.mark.parametrize("option", ["--json", "--markdown", "--html"])
def test_an_output_that_cannot_be_written_is_told_before_anything_is_timed(bundle, tmp_path, option):
    folder, detectors = bundle
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "report"):
        result = invoke(folder, *QUICK, option, target)
        assert isinstance(result.exception, OutputWriteError)
        assert f"cannot write {target}: " in str(result.exception)
    assert not detectors


@pytest.mark.parametrize("is_quiet", [False, True])
def test_progress_is_a_line_on_a_terminal_unless_quiet(bundle, monkeypatch, capsys, is_quiet):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    arguments = [*(["-q"] if is_quiet else []), "benchmark", str(bundle[0]), *map(str, QUICK), "--batch", "0"]
    group.main(arguments, standalone_mode=False, obj={})
    out, err = capsys.readouterr()
    assert out.startswith("Shortened EfficientAD protocol")
    told = [line.rstrip() for line in err.split("\r") if line]
    assert told[:3] == ([] if is_quiet else [f"latency: {done}/3" for done in range(1, 4)])


def test_every_option_reaches_the_run(bundle):
    folder, detectors = bundle
    options = (
        "-d",
        "GPU.1",
        "--precision",
        "f32",
        "--threads",
        3,
        "--throughput-iterations",
        4,
        "--json",
        "-",
        *("--memory-budget", "3MB"),
        *("--cache-dir", "compiled"),
    )
    report = BenchmarkReport.from_json(json.loads(invoke(folder, *QUICK, *options).stdout))
    assert [given for _, *given in detectors] == 2 * [["GPU.1", "f32", 3, "3MB", Path("compiled")]]
    config = report.config
    assert (config.device, config.precision, config.threads, config.memory_budget) == ("GPU.1", "f32", 3, "3MB")
    assert config.has_cache
    assert report.throughput.runs.count == 4


def test_the_gate_fails_after_the_report_is_out(bundle, tmp_path):
    file = tmp_path / "r.json"
    result = invoke(bundle[0], *QUICK, "--json", file, "--fail-above-ms", 0)
    assert isinstance(result.exception, GateError)
    assert result.exception.exit_code == 3
    assert "is above --fail-above-ms 0" in str(result.exception)
    assert file.exists()
    assert invoke(bundle[0], *QUICK, "--fail-above-ms", 1e9).exit_code == 0
