import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from benchmark_fakes import make_report

from edge_ad.benchmarks import environment, memory

MACHINE = make_report().environment


def test_a_quiet_machine_has_no_warning():
    assert MACHINE.warnings() == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"governor": "powersave"}, "the CPU governor is 'powersave', not 'performance'"),
        ({"load_average": 1.7}, "the load average was 1.70 before the benchmark"),
        ({"cpu_quota": 1.5}, "the container may use 1.5 of 2 CPUs"),
    ],
)
def test_each_reason_for_doubt_is_told(change, message):
    (warning,) = replace(MACHINE, **change).warnings()
    assert warning.startswith(message)


def test_what_a_machine_does_not_tell_is_no_reason():
    assert replace(MACHINE, governor=None, load_average=None).warnings() == ()


CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu avx2 avx512_vnni amx_int8 ht

processor\t: 1
model name\t: Another
"""


def test_linux_files_are_read(tmp_path, monkeypatch):
    for name, text in {"CPUINFO": CPUINFO, "MEMINFO": "MemTotal:   1000 kB\n", "GOVERNOR": "ondemand\n"}.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(environment, f"_{name}", tmp_path / name)
    monkeypatch.setattr(environment, "_QUOTA", tmp_path / "missing")
    machine = environment.read_environment("NOWHERE", 0.5)
    assert machine.cpu == "Some CPU @ 2 GHz"
    assert machine.cpu_flags == ("avx2", "avx512_vnni", "amx_int8")
    assert machine.memory_bytes == 1_024_000
    assert machine.governor == "ondemand"
    assert machine.cpu_quota is None
    assert (machine.device, machine.device_name, machine.driver) == ("NOWHERE", "NOWHERE", None)
    assert machine.load_average == 0.5
    assert machine.versions["numpy"] == np.__version__
    assert datetime.fromisoformat(machine.time_utc).utcoffset().total_seconds() == 0


def test_where_those_files_are_missing_nothing_is_invented(tmp_path, monkeypatch):
    for name in ("CPUINFO", "MEMINFO", "GOVERNOR", "QUOTA"):
        monkeypatch.setattr(environment, f"_{name}", tmp_path / "missing")
    machine = environment.read_environment("NOWHERE", None)
    assert machine.cpu  # the platform's own name
    assert machine.cpu_flags == ()
    assert (machine.governor, machine.memory_bytes, machine.cpu_quota) == (None, None, None)


@pytest.mark.parametrize("raised", ["ImportError('libov.so')", "RuntimeError('no plugins.xml')"])
def test_a_broken_engine_that_did_not_run_costs_its_facts_alone(tmp_path, raised):
    """In a process of its own, which has not imported the engine yet."""
    for package in ("openvino", "onnxruntime"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise {raised}")
    code = (
        "from edge_ad.benchmarks.environment import read_environment\n"
        "from edge_ad.benchmarks.ceilings import measure_ceilings\n"
        "machine, found = read_environment('CPU', None), measure_ceilings('CPU', ['f32'], 1)\n"
        "print(machine.device_name, machine.driver, *(ceiling.source for ceiling in found.compute))"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environ = os.environ | {"PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert (run.stdout, run.stderr) == ("CPU None numpy matrix product\n", "")


def test_the_affinity_counts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert environment.usable_cpus() == 3


def test_memory_is_read_in_bytes(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    3072 kB\nVmRSS:\t    2048 kB\n")
    monkeypatch.setattr(memory, "_STATUS", status)
    assert memory.resident_bytes() == 2 * 2**20
    assert memory.peak_resident_bytes() == 3 * 2**20
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "missing")
    assert memory.resident_bytes() is None
    assert memory.peak_resident_bytes() is None


GROWTH = """
import numpy as np
from edge_ad.benchmarks import memory

before = memory.peak_resident_bytes()
ballast = np.ones(before - memory.resident_bytes() + 32 * 2**20, np.uint8)
print(memory.peak_resident_bytes() - before, ballast[-1])
"""


@pytest.mark.skipif(not memory._STATUS.exists(), reason="no /proc on this system")
def test_the_peak_grows_by_what_is_written():
    """In a process of its own: the peak of this one may lie gigabytes above what it holds now."""
    run = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, timeout=120)
    grown, written = map(int, run.stdout.split())
    assert 16 * 2**20 <= grown <= 64 * 2**20
    assert written == 1
