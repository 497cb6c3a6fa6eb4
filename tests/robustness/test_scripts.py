"""The scripts of benchmarks/robustness in their short form; docs/reliability.md has the figures of the long one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "robustness"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and bounds the memory of its children")


def last_line(name: str, *arguments: str) -> str:
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()[-1]


def test_a_task_that_hangs_is_killed_and_told() -> None:
    """In a process of its own, for it forks."""
    code = (
        "import sandbox, time; task = lambda: time.sleep(60); "
        "print(sandbox.run(task, memory_bytes=2**30, timeout_s=0.2).kind)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, timeout=30)
    assert (run.stdout, run.stderr) == ("hung\n", "")


def test_every_region_of_a_bundle_that_is_changed_is_refused() -> None:
    count, total = re.match(r"tamperings refused (\d+)/(\d+) ", last_line("tamper.py")).groups()
    assert count == total
    assert int(total) > 3000


@pytest.mark.slow
def test_malformed_inputs_are_refused() -> None:
    line = last_line("fuzz.py", "--count", "8", "--seed", "short")
    count, total = re.match(r"malformed inputs refused (\d+)/(\d+) ", line).groups()
    assert count == total
    assert "0 untyped, 0 crashed, 0 hung" in line


@pytest.mark.slow
def test_full_disks_are_one_error_and_the_command_ends_well_when_repeated(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "edge-ad", tmp_path], capture_output=True, timeout=60)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    subprocess.run(["umount", tmp_path], check=True, timeout=60)
    assert last_line("full_disk.py", "--steps", "2") == "full disks survived 2/2"


@pytest.mark.slow
def test_killed_commands_end_in_the_same_files_when_repeated() -> None:
    assert re.match(r"kills survived 4/4 ", last_line("kills.py", "--kills", "4"))
