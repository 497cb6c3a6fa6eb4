from __future__ import annotations

from pathlib import Path

import pytest

from edge_ad import doctor
from edge_ad.bundle.manifest import Format
from edge_ad.doctor import Status
from edge_ad.errors import EngineMissingError


@pytest.mark.parametrize("graph_format", Format)
def test_compiles_and_computes(graph_format):
    check = doctor.check_engine(graph_format)
    assert check.status is Status.OK
    assert "computes; devices: CPU" in check.found


def test_reports_an_engine_that_does_not_load(monkeypatch):
    def import_engine(graph_format):
        raise EngineMissingError("libopenvino.so not found")

    monkeypatch.setattr(doctor, "import_engine", import_engine)
    check = doctor.check_engine(Format.OPENVINO)
    assert (check.status, check.found) == (Status.FAIL, "libopenvino.so not found")
    assert check.remedy == "pip install --force-reinstall openvino"


@pytest.mark.parametrize(
    ("installed", "remedy"),
    [
        (["onnxruntime"], "pip install --force-reinstall onnxruntime"),
        (["onnxruntime-gpu"], "pip install --force-reinstall onnxruntime-gpu"),
        (
            ["onnxruntime", "onnxruntime-gpu"],
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them",
        ),
    ],
)
def test_a_gpu_box_keeps_its_gpu_engine(monkeypatch, installed, remedy):
    def import_engine(graph_format):
        raise EngineMissingError("damaged")

    monkeypatch.setattr(doctor, "import_engine", import_engine)
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.2" if name in installed else None)
    assert doctor.check_engine(Format.ONNX).remedy == remedy


def test_reports_an_engine_that_computes_wrongly(monkeypatch):
    monkeypatch.setitem(doctor.TINY_GRAPHS, Format.OPENVINO, ("t.xml", doctor.TINY_IR.replace("ReLU", "Abs").encode()))
    check = doctor.check_engine(Format.OPENVINO)
    assert check.status is Status.FAIL
    assert "computes [[1.0, 0.0, 1.0, 2.0]]" in check.found


def test_on_an_edge_box_warns_about_training(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    check = doctor.check_training()
    assert (check.status, check.found) == (Status.WARN, "not installed")
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == "timm" else module)
    assert doctor.check_training().found == "lacks timm"


@pytest.mark.parametrize(
    ("torch", "status"), [("2.13.0+cpu", Status.OK), ("2.13.0", Status.OK), ("2.12.1+cu126", Status.FAIL)]
)
def test_knows_which_torch_a_torchvision_wants(monkeypatch, torch, status):
    versions = {"torch": torch, "torchvision": "0.28.0"}
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    monkeypatch.setattr(doctor, "requires", lambda package: ["numpy", "torch==2.13.0", "pillow>=5.3"])
    assert doctor.check_torchvision().status is status
    monkeypatch.setattr(doctor, "installed_version", lambda package: None)
    assert doctor.check_torchvision() is None


def test_looks_for_room_and_permission(monkeypatch, tmp_path):
    there = doctor.check_folder("cache", tmp_path / "not" / "yet")
    assert str(tmp_path / "not" / "yet") in there.found
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(doctor, "DISK_BYTES", 10**18)
    assert doctor.check_folder("cache", tmp_path).status is Status.WARN
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert doctor.check_folder("cache", tmp_path / "not", "go elsewhere").status is Status.FAIL


def test_reports_a_base_package_that_does_not_load():
    check = doctor.check_module("OpenCV", "cv2_that_is_not_there")
    assert check.status is Status.FAIL
    assert "does not load (No module named 'cv2_that_is_not_there')" in check.found
