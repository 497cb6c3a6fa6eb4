"""Plans, resuming, failures and processes, with cells that take no time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from experiment_fakes import TINY, bundle_outcome, outcome, some_config

from edge_ad.bundle.manifest import ScoreMerge
from edge_ad.errors import (
    ConfigError,
    DataNotFoundError,
    DeviceNotFoundError,
    EdgeAdError,
    InputError,
    ParityError,
    ResultsError,
)
from edge_ad.experiment import runner
from edge_ad.experiment.config import Config, Variant
from edge_ad.experiment.grid import Cell, cells
from edge_ad.experiment.record import Identity, Record, make_record
from edge_ad.experiment.runner import make_plan, run_jobs, store_of
from edge_ad.runtime.processor import cpu_shares


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Identity]:
    """Replaces the work of a cell; lists the lines that were asked for."""
    asked: list[Identity] = []

    def run_cell(
        cell: Cell, folder: Path, todo: Collection[Identity], emit: Callable[[Record], object], **_: Any
    ) -> None:
        for identity in todo:
            asked.append(identity)
            made = outcome() if identity.precision is Variant.TORCH else bundle_outcome()
            emit(make_record(identity, cell.settings(identity.precision), made))

    monkeypatch.setattr(runner, "run_cell", run_cell)
    return asked


def run(config: Config, folder: Path, **options: Any) -> None:
    run_jobs(make_plan(config, folder, **options).jobs, folder)


def test_the_grid_has_seeds_outermost_and_every_line_once():
    config = some_config(setups=["sm256", "ens9"], score_merges=["mean", "max"])
    found = list(cells(config))
    assert len(found) == 2 * 2 * 2  # seeds, categories, setups
    assert [cell.seed for cell in found] == [0] * 4 + [1] * 4
    identities = [identity for cell in found for identity in cell.identities]
    assert len(set(identities)) == len(identities) == 8 * 2 * 2
    assert identities[:4] == [
        Identity("metal", "nut", "padim", "tf_efficientnet_lite0", "sm256", 0, variant, merge)
        for variant in (Variant.TORCH, Variant.INT8)
        for merge in ScoreMerge
    ]
    assert str(found[0]) == "metal/nut padim tf_efficientnet_lite0 sm256 seed 0"


def test_categories_are_looked_up_where_none_is_named(tmp_path: Path):
    for category in ("nut", "bolt"):
        (tmp_path / "several" / category / "train" / "good").mkdir(parents=True)
    (tmp_path / "one" / "train" / "good").mkdir(parents=True)
    datasets = [{"path": str(tmp_path / "several")}, {"path": str(tmp_path / "one"), "name": "single"}]
    found = list(cells(some_config(datasets=datasets, seeds=[0])))
    assert [cell.category for cell in found] == ["bolt", "nut", None]
    assert found[2].identities[0].dataset == "single"
    assert found[2].identities[0].category == "one"
    with pytest.raises(DataNotFoundError, match="nowhere"):
        list(cells(some_config(datasets=[{"path": "nowhere"}])))


def test_folders_tell_training_settings_apart_and_only_those():
    def name(**changes: Any) -> str:
        return next(cells(some_config(**changes))).folder_name

    assert name() == name(score_merges=["max"], precisions=["fp32"], format="onnx", metrics_size=[32, 32])
    different = [name(), name(threshold="max"), name(held_out=0.5), name(parameters={"padim": {"dimensions": 7}})]
    different += [name(setups=[TINY]), name(seeds=[5]), name(backbones=[{"weights": "none"}])]
    assert len(set(different)) == len(different)
    assert "/" not in name(backbones=[{"name": "hub/net"}])


def config_of_files(folder: Path) -> tuple[Config, Path, Path]:
    """Of EfficientAD; its teacher; and the folder of its photographs."""
    weights, photographs = folder / "teacher.safetensors", folder / "photographs"
    weights.write_bytes(b"one")
    photographs.mkdir()
    (photographs / "a.jpg").write_bytes(b"1")
    parameters = {"weights": str(weights), "penalty_images": str(photographs)}
    return some_config(methods=["efficient_ad"], parameters={"efficient_ad": parameters}), weights, photographs


def test_folders_tell_files_of_one_name_apart(tmp_path: Path):
    """A run that was kept or left unfinished is not gone on with where its teacher or photographs are others."""
    config, weights, photographs = config_of_files(tmp_path)
    names = [next(cells(config)).folder_name for _ in range(2)]
    assert names[0] == names[1]
    weights.write_bytes(b"another")
    names.append(next(cells(config)).folder_name)
    (photographs / "b.jpg").write_bytes(b"22")
    names.append(next(cells(config)).folder_name)
    assert len(set(names)) == 3


def test_only_the_first_seed_is_benchmarked():
    found = list(cells(some_config(benchmark={"iterations": 5})))
    assert [cell.benchmark is not None for cell in found] == [True, True, False, False]
    assert found[0].settings(Variant.INT8)["benchmark"]["iterations"] == 5
    assert found[2].settings(Variant.INT8)["benchmark"] is None
    assert "benchmark" not in found[0].settings(Variant.TORCH)


def test_a_second_run_does_nothing(tmp_path: Path, computed: list[Identity]):
    config = some_config()
    run(config, tmp_path)
    assert len(computed) == len(set(computed)) == 8
    content = store_of(tmp_path).path.read_bytes()
    run(config, tmp_path)
    assert len(computed) == 8
    assert store_of(tmp_path).path.read_bytes() == content
    plan = make_plan(config, tmp_path)
    assert (len(plan.records), plan.jobs, plan.lines) == (8, (), 8)


def test_a_longer_list_adds_its_cells_alone(tmp_path: Path, computed: list[Identity]):
    run(some_config(), tmp_path)
    computed.clear()
    run(some_config(seeds=[0, 1, 2], precisions=["torch", "int8", "fp32"]), tmp_path)
    assert {(each.seed, each.precision) for each in computed} == {
        (0, "fp32"), (1, "fp32"), (2, "torch"), (2, "int8"), (2, "fp32")
    }  # fmt: skip
    assert len(computed) == 2 * 5


def test_a_shorter_list_shows_its_part_of_the_results(tmp_path: Path, computed: list[Identity]):
    run(some_config(), tmp_path)
    plan = make_plan(some_config(seeds=[1]), tmp_path)
    assert ({each.identity.seed for each in plan.records}, plan.lines, plan.jobs) == ({1}, 4, ())


def test_other_settings_are_refused_or_computed_again_never_mixed(tmp_path: Path, computed: list[Identity]):
    run(some_config(), tmp_path)
    changed = some_config(threshold="max")
    with pytest.raises(ResultsError, match=r"threshold: sigma:3 there, max here.*--recompute"):
        make_plan(changed, tmp_path)
    assert make_plan(changed, tmp_path, recompute=True).records == ()
    computed.clear()
    run(changed, tmp_path, recompute=True)
    assert len(computed) == 8
    assert {each.settings["threshold"] for each in make_plan(changed, tmp_path).records} == {"max"}


def test_the_limit_of_spro_is_a_setting_of_sets_that_have_one():
    def settings(layout: str, **changes: Any) -> dict[str, Any]:
        datasets = [{"path": "x", "layout": layout, "categories": ["nut"]}]
        return next(cells(some_config(datasets=datasets, **changes))).settings(Variant.TORCH)

    assert settings("mvtec") == settings("mvtec", spro_limit=0.2)  # older results of such sets stay valid
    assert "spro_limit" not in settings("mvtec")
    assert (settings("loco")["spro_limit"], settings("loco", spro_limit=0.2)["spro_limit"]) == (0.05, 0.2)


def test_settings_of_bundles_do_not_touch_torch(tmp_path: Path, computed: list[Identity]):
    run(some_config(), tmp_path)
    computed.clear()
    run(some_config(execution="f32"), tmp_path, recompute=True)
    assert {each.precision for each in computed} == {Variant.INT8}


def test_other_weights_in_the_same_file_are_not_mixed(tmp_path: Path, computed: list[Identity]):
    weights, photographs = tmp_path / "weights.safetensors", tmp_path / "photographs"
    weights.write_bytes(b"one")
    photographs.mkdir()
    (photographs / "a.jpg").write_bytes(b"1")
    parameters = {"efficient_ad": {"penalty_images": str(photographs)}}
    config = some_config(
        methods=["padim", "efficient_ad"], backbones=[{"weights": str(weights)}], parameters=parameters, seeds=[0]
    )
    run(config, tmp_path)
    done = len(computed)
    run(config, tmp_path)
    assert len(computed) == done
    (photographs / "b.jpg").write_bytes(b"22")
    with pytest.raises(ResultsError, match=r"efficient_ad.* with other settings \(files: .*penalty_images"):
        make_plan(config, tmp_path)
    (photographs / "b.jpg").unlink()
    assert not make_plan(config, tmp_path).jobs
    weights.write_bytes(b"another")
    with pytest.raises(ResultsError, match=r"padim.* with other settings \(files: .*weights"):
        make_plan(config, tmp_path)


def test_results_are_shown_where_their_files_are_not_at_hand(tmp_path: Path, computed: list[Identity]):
    """The photographs still are, and are compared."""
    config, weights, photographs = config_of_files(tmp_path)
    run(config, tmp_path)
    weights.unlink()
    plan = make_plan(config, tmp_path)
    assert (len(plan.records), plan.jobs) == (8, ())
    (photographs / "b.jpg").write_bytes(b"22")
    with pytest.raises(ResultsError, match="with other settings"):
        make_plan(config, tmp_path)


def test_lines_of_before_files_were_told_apart_stay(tmp_path: Path, computed: list[Identity]):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    config = some_config(backbones=[{"weights": str(weights)}])
    for cell in cells(config):
        for identity in cell.identities:
            settings = {key: value for key, value in cell.settings(identity.precision).items() if key != "files"}
            store_of(tmp_path).append(make_record(identity, settings, outcome()))
    assert len(make_plan(config, tmp_path).records) == 8


def test_killed_in_the_middle_it_continues_there(
    tmp_path: Path, computed: list[Identity], monkeypatch: pytest.MonkeyPatch
):
    config, whole = some_config(), runner.run_cell

    def killed(cell: Cell, folder: Path, todo: Any, emit: Callable[[Record], object], **options: Any) -> None:
        if len(computed) == 4:
            whole(cell, folder, todo[:1], emit, **options)
            raise KeyboardInterrupt
        whole(cell, folder, todo, emit, **options)

    monkeypatch.setattr(runner, "run_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    monkeypatch.setattr(runner, "run_cell", whole)
    path = store_of(tmp_path).path
    path.write_bytes(path.read_bytes() + b'{"schema_version":1,"iden')  # and a line was on its way
    assert len(make_plan(config, tmp_path).records) == 5
    run(config, tmp_path)
    assert len(computed) == len(set(computed)) == 8
    assert len(make_plan(config, tmp_path).records) == 8


def test_failures_are_tried_again(tmp_path: Path, computed: list[Identity]):
    config = some_config()
    cell = next(cells(config))
    failed = cell.identities[1]
    store_of(tmp_path).append(make_record(failed, cell.settings(failed.precision), ParityError("no")))
    assert make_plan(config, tmp_path).records[0].failure is not None
    run(config, tmp_path)
    assert failed in computed
    assert all(each.outcome for each in make_plan(config, tmp_path).records)


def test_a_failure_of_other_settings_is_computed_with_the_corrected_ones(tmp_path: Path, computed: list[Identity]):
    wrong, config = some_config(parity_tolerance=1e-9), some_config()
    failed = next(cells(wrong)).identity(Variant.INT8, ScoreMerge.MEAN)
    store_of(tmp_path).append(make_record(failed, next(cells(wrong)).settings(Variant.INT8), ParityError("no")))
    assert make_plan(config, tmp_path).records == ()
    run(config, tmp_path)
    assert failed in computed
    assert {each.settings.get("parity_tolerance") for each in make_plan(config, tmp_path).records} == {None}
    with pytest.raises(ResultsError, match="parity_tolerance"):
        make_plan(wrong, tmp_path)


@pytest.mark.parametrize(
    ("method", "parameters", "error", "said"),
    [
        ("padim", {"nix": 1}, InputError, "padim has no parameter nix"),
        ("padim", {"seed": 1}, ConfigError, "belongs to backbones or seeds"),
        ("padim", {"dimensions": 10.5}, ConfigError, r"parameters\.padim\.dimensions: expected int, but got 10\.5"),
        ("stfpm", {"bf16": "false"}, ConfigError, r"parameters\.stfpm\.bf16: expected bool, but got 'false'"),
        ("stfpm", {"steps": 10.5}, ConfigError, r"parameters\.stfpm\.steps: expected int, but got 10\.5"),
        ("mixed_teacher", {"second_layers": "blocks.2"}, ConfigError, "second_layers: expected a list"),
        ("uninformed_students", {"fields": [17, "33"]}, ConfigError, r"fields\[1\]: expected int, but got '33'"),
    ],
)
def test_parameters_are_checked_before_anything_runs(
    method: str, parameters: dict[str, object], error: type[Exception], said: str, tmp_path: Path
):
    with pytest.raises(error, match=said):
        make_plan(some_config(methods=[method], parameters={method: parameters}), tmp_path)


def test_parameters_of_every_kind_are_taken(tmp_path: Path):
    """A whole number where a fraction may be, what may be none, and lists."""
    parameters = {
        "patchcore": {"coreset_ratio": 1, "bank_size": 64},
        "stfpm": {"bf16": True, "steps": 3, "learning_rate": 0.5, "schedule": "paper"},
        "uninformed_students": {"fields": [17, 33]},
    }
    assert make_plan(some_config(methods=list(parameters), parameters=parameters), tmp_path).jobs


def test_the_training_device_is_a_setting_where_it_is_not_the_cpu():
    here, there = (next(cells(some_config(training_device=name))) for name in ("cpu", "cuda"))
    assert here.settings(Variant.TORCH) == next(cells(some_config())).settings(Variant.TORCH)
    for variant in (Variant.TORCH, Variant.INT8):
        assert "training_device" not in here.settings(variant)
        assert there.settings(variant)["training_device"] == "cuda"
    assert here.folder_name != there.folder_name


def test_a_training_device_that_is_not_there_is_told_before_anything_runs(tmp_path: Path, computed: list[Identity]):
    plan = make_plan(some_config(training_device="cuda:99"), tmp_path)
    with pytest.raises(DeviceNotFoundError, match=r"torch finds no device 'cuda:99'; it finds cpu"):
        run_jobs(plan.jobs, tmp_path)
    assert not computed
    assert not list(tmp_path.iterdir())


def test_benchmarks_want_the_machine_for_themselves(tmp_path: Path):
    plan = make_plan(some_config(benchmark={"iterations": 5}), tmp_path)
    with pytest.raises(InputError, match="--jobs 1"):
        run_jobs(plan.jobs, tmp_path, processes=2)


def test_processes_bring_failures_home_as_lines(tmp_path: Path):
    """Real processes; the data set is not there, so every cell fails at once."""
    config = some_config(seeds=[0])
    told: list[Record] = []
    run_jobs(make_plan(config, tmp_path).jobs, tmp_path, processes=2, told=told.append)
    assert len(told) == 4
    assert {each.failure.error for each in told if each.failure} == {"DataNotFoundError"}
    assert len(store_of(tmp_path).read()) == 4


def test_a_process_that_dies_is_a_known_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "_begin_worker", _die)
    with pytest.raises(EdgeAdError, match="a process died"):
        run_jobs(make_plan(some_config(seeds=[0]), tmp_path).jobs, tmp_path, processes=2)


def _die(*_: object) -> None:
    raise SystemExit(9)


PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from edge_ad.experiment.runner import _begin_worker
from edge_ad.runtime.processor import cpu_shares

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    shares = context.SimpleQueue()
    shares.put(cpu_shares(2)[1])
    pool = ProcessPoolExecutor(1, context, _begin_worker, (1, shares))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_workers_have_their_own_cpus_and_end_with_a_killed_parent(tmp_path: Path):
    """Else engines would start threads for all CPUs, and workers go on in the folders that the next call continues."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        guard = threading.Timer(120, parent.kill)  # else a parent that hangs would hold the read for ever
        guard.start()
        try:
            worker = int(parent.stdout.readline())
            assert _runs(worker)
            if hasattr(os, "sched_getaffinity"):
                threads = [int(task.name) for task in Path(f"/proc/{worker}/task").iterdir()]
                assert all(os.sched_getaffinity(thread) == cpu_shares(2)[1] for thread in (worker, *threads))
        finally:
            guard.cancel()
            parent.kill()
        parent.wait()
        deadline = time.monotonic() + 30
        while _runs(worker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _runs(worker)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
