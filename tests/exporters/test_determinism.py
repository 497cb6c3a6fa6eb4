"""Same seed, same data, same machine: the same bytes, in another process and with another order of sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import tiny_run

from edge_ad.errors import InputError
from edge_ad.training.run_detector import RAW, run_manifest

SCRIPT = Path(__file__).with_name("reproduce.py")
EPOCH = "1700000000"


@pytest.mark.slow
def test_runs_and_bundles_are_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        environment = os.environ | {"PYTHONHASHSEED": str(number), "SOURCE_DATE_EPOCH": EPOCH}
        command = [sys.executable, str(SCRIPT), str(folder)]
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=600)
        found.append({file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()})
    first, second = found
    assert len(first) >= 40
    assert [name for name in first | second if first.get(name) != second.get(name)] == []


def test_source_date_epoch_is_the_time_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = tiny_run(tmp_path / "run")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    assert run_manifest(run, RAW).provenance.created_utc == "2023-11-14T22:13:20+00:00"
    for wrong in ("yesterday", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(InputError, match="SOURCE_DATE_EPOCH: expected seconds since 1970"):
            run_manifest(run, RAW)
