"""devices and doctor."""

from __future__ import annotations

import json

from edge_ad import doctor
from edge_ad.cli import devices
from edge_ad.runtime.devices import DeviceInfo, list_devices


def test_devices(run):
    code, out, err = run("devices")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["device", "engine", "precisions", "full", "name"]
    assert len(out.splitlines()) == 1 + len(list_devices())


def test_devices_as_json(run, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "list_devices", lambda: [DeviceInfo("GPU.1", "Arc", "OpenVINO", ("f16", "f32"))])
    expected = [{"name": "GPU.1", "full_name": "Arc", "engine": "OpenVINO", "precisions": ["f16", "f32"]}]
    assert run("devices", "--json", "-").json == expected
    assert run("devices", "--json", tmp_path / "d.json").out == run("devices").out
    assert json.loads((tmp_path / "d.json").read_text()) == expected


def test_devices_without_an_engine(run, monkeypatch):
    monkeypatch.setattr(devices, "list_devices", list)
    code, out, err = run("devices")
    assert (code, out) == (4, "")
    assert err == "error: no inference engine is installed; pip install '.[openvino]' in a checkout of edge-ad\n"


def test_doctor_is_well_here(run, tmp_path):
    code, out, _ = run("doctor")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} <= {"ok", "warn"}
    checks = run("doctor", "--json", "-").json
    assert {"python", "numpy", "OpenCV", "training extra", "working folder"} <= {check["name"] for check in checks}
    assert all(check.keys() == {"name", "status", "found", "remedy"} for check in checks)
    assert "python" in run("doctor", "--json", tmp_path / "checks.json").out
    assert [check["name"] for check in json.loads((tmp_path / "checks.json").read_text())] == [
        c["name"] for c in checks
    ]


def test_doctor_fails_where_there_is_no_engine(run, monkeypatch):
    monkeypatch.setattr(doctor, "_is_installed", lambda graph_format: False)
    code, out, err = run("doctor")
    assert code == 1
    assert "fail  engine" in out
    assert "pip install '.[openvino]' in a checkout of edge-ad" in out
    assert err.endswith("checks failed: engine\n")


def test_a_check_that_raises_has_failed(run, monkeypatch, tmp_path):
    def devices():
        raise RuntimeError("the driver\n  is gone")

    monkeypatch.setattr("edge_ad.runtime.openvino_session.devices", devices)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, out, err = run("doctor")
    assert code == 1
    assert "fail  openvino          RuntimeError: the driver is gone; report this" in out
    assert "fail  working folder    FileNotFoundError" in out
    assert "ok    onnxruntime" in out
    assert err.endswith("checks failed: openvino, working folder\n")
