"""On which processors float parts are better left in float32, and that the CPU's default follows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import WRITERS

from edge_ad.bundle.manifest import Format
from edge_ad.runtime import openvino_session, processor
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.runtime.sessions import open_session

INTEL, AMD = "vendor_id\t: GenuineIntel", "vendor_id\t: AuthenticAMD"


@pytest.mark.parametrize(
    ("cpuinfo", "slow"),
    [
        (f"{INTEL}\nflags\t\t: fpu avx512_bf16 amx_bf16", False),
        (f"{INTEL}\nflags\t\t: fpu avx512_bf16", True),
        (f"{AMD}\nflags\t\t: fpu avx512_bf16", False),
        ("Features\t: asimd bf16", False),
    ],
)
def test_where_bf16_is_slow(cpuinfo: str, slow: bool, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    assert not processor.bf16_is_slow(tmp_path / "none")  # not Linux
    file.write_text(f"processor\t: 0\n{cpuinfo}\n\nprocessor\t: 1\n{cpuinfo}\n")
    assert processor.bf16_is_slow(file) is slow


STAY = """
import os, threading
from edge_ad.runtime.processor import stay_on

done = threading.Event()
there = threading.Thread(target=done.wait)
there.start()
cpus = sorted(os.sched_getaffinity(0))
stay_on(set(cpus[:1]))
print(cpus[:1] == sorted(os.sched_getaffinity(there.native_id)) == sorted(os.sched_getaffinity(0)), len(cpus))
done.set()
"""


PINNED = """
import os, threading
from edge_ad.runtime.processor import usable_cpus

def pinned():
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    print(usable_cpus() == cpus, cpus)

cpus = len(os.sched_getaffinity(0))
thread = threading.Thread(target=pinned)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinities here")
@pytest.mark.parametrize("script", [STAY, PINNED], ids=["moved", "pinned by itself"])
def test_affinities_are_the_whole_processs(script: str) -> None:
    """Threads that were there already move too, for pools of torch and numpy start when these are imported: before a
    worker of an experiment is told its CPUs. One that a program has pinned does not count for the process.
    """
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    if int(told[1]) == 1:
        pytest.skip("one CPU is all there is")
    assert told[0] == "True"


def test_the_default_is_float32_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = WRITERS[Format.OPENVINO][0](tmp_path / "graph", (23, 29))[0]
    supported = openvino_session._supported_precisions("CPU")
    monkeypatch.setattr(openvino_session, "bf16_is_slow", lambda: True)
    assert openvino_session._supported_precisions("CPU")[0] == "f32"
    assert open_session(path, Format.OPENVINO).precision == "f32"
    if "bf16" in supported:  # still there for who asks
        assert open_session(path, Format.OPENVINO, precision=ExecutionPrecision.BF16).precision == "bf16"
        monkeypatch.setattr(openvino_session, "bf16_is_slow", lambda: False)
        assert open_session(path, Format.OPENVINO).precision == openvino_session._supported_precisions("CPU")[0]
