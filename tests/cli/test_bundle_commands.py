"""verify and inspect."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_bundle import edit_manifest, tiny_manifest, tiny_setup

import edge_ad
from edge_ad.bundle.files import read_manifest
from edge_ad.bundle.manifest import Format, Fusion, Manifest, Scale
from edge_ad.cli import verify
from edge_ad.data.synthetic import write_synthetic
from edge_ad.errors import BundleNotFoundError
from edge_ad.imaging import write_png


@pytest.mark.parametrize("graph_format", Format)
def test_verify_a_good_bundle(run, tiny_bundle, graph_format):
    code, out, err = run("verify", tiny_bundle(graph_format=graph_format))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("MB: unchanged")
    assert [line.split()[0] for line in lines[-3:]] == ["normal", "anomalous", "verified"]
    assert f"{graph_format} on CPU" in lines[1]


def test_verify_finds_another_result(run, tiny_bundle):
    bundle = tiny_bundle()

    def other_score(manifest):
        manifest["golden"][1]["raw_score"] += 0.5

    edit_manifest(bundle, other_score)
    code, out, err = run("verify", bundle)
    assert code == 3
    assert "verified" not in out
    assert err.startswith("error: on CPU in ")
    assert "anomalous score: expected" in err


def test_verify_finds_a_changed_file(run, tiny_bundle):
    bundle = tiny_bundle()
    graph = bundle / "graphs" / "shared.xml"
    graph.write_bytes(graph.read_bytes().replace(b"features", b"featurez"))
    code, out, err = run("verify", bundle)
    assert (code, out) == (2, "")
    assert "graphs/shared.xml has another SHA-256" in err


def test_verify_on_another_device(run, tiny_bundle, monkeypatch):
    bundle, calls = tiny_bundle(), []
    assert run("verify", bundle, "-d", "GPU.7").code == 4

    def open_detector(path, manifest, device, *, precision):
        calls.append((device, precision))
        return real(path, manifest)

    real = verify.open_detector
    monkeypatch.setattr(verify, "open_detector", open_detector)
    assert run("verify", bundle, "--device", "AUTO", "--precision", "bf16").code == 0
    assert calls == [("AUTO", "bf16")]


def test_inspect(run, tiny_bundle):
    bundle = tiny_bundle()
    manifest = read_manifest(bundle)
    code, out, err = run("inspect", bundle)
    assert (code, err) == (0, "")
    for expected in (
        "padim, resnet18 (components 50)",
        str(manifest.setup),
        repr(manifest.setup.grid),
        "score 1.2, map 0.9 (raw), scaled by image: fixed",
        "4 x head",
        "0.00 GFLOP per image",
        "head r01_c01",
        "12 training images",
        "2026-01-02T03:04:05+00:00",
    ):
        assert expected in out, expected
    # Not of a tile: an extractor that is shown the whole image is run once for it
    assert " MFLOP/run " in out


def test_inspect_adds_up(run, tiny_bundle):
    bundle = tiny_bundle()
    found = run("inspect", "--json", "-", bundle).json
    assert Manifest.from_json(found["manifest"]) == read_manifest(bundle)
    totals = found["totals"]
    on_disk = sum(path.stat().st_size for path in bundle.rglob("*.*") if path.name != "manifest.json")
    assert totals["size_bytes"] == on_disk
    assert totals["size_bytes"] == totals["shared_bytes"] + sum(totals["head_bytes"]) + totals["golden_bytes"]
    # Each of five graphs has 2 parameters and 1000 operations; four tiles, each through the extractor and its head
    assert (totals["tiles"], totals["models"], totals["parameters"]) == (4, 4, 10)
    assert totals["flops_per_image"] == 4 * (1000 + 1000)


def test_inspect_names_the_global_model(run, tiny_bundle):
    manifest = tiny_manifest(replace(tiny_setup(), global_model=True))
    scale = Scale(0.0, 1.0)
    fused = replace(manifest.normalisation, fusion=Fusion(scale, scale, scale, scale))
    out = run("inspect", tiny_bundle(replace(manifest, normalisation=fused))).out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("head ")][-2:] == ["r01_c01", "whole"]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_folder_that_is_no_bundle(run, tmp_path, command):
    code, _, err = run(command, tmp_path)
    assert code == 2
    assert err == f"error: {tmp_path} is not a bundle: it has no manifest.json\n"


@pytest.mark.parametrize("command", [["inspect"], ["verify"], ["predict", "photos", "-o", "out"]], ids=lambda c: c[0])
def test_a_run_where_a_bundle_is_wanted(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "photos" / "grey.png", np.full((9, 9, 3), 90, np.uint8))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    code, out, err = run(command[0], "run", *command[1:])
    assert (code, out) == (2, "")
    remedy = "it is a run: make a bundle of it with edge-ad export"
    assert err == f"error: run is not a bundle: it has no manifest.json; {remedy}\n"
    with pytest.raises(BundleNotFoundError, match=remedy):
        edge_ad.load("run")


def test_what_is_evaluated_may_be_a_run_or_a_bundle(run, tmp_path):
    data = write_synthetic(tmp_path / "plates", size=(64, 64), train=1, test_good=1, test_defective=1)
    code, _, err = run("evaluate", tmp_path, "--data", data)
    assert (code, err) == (
        2,
        f"error: {tmp_path} is neither a run nor a bundle: it has no run.json and no manifest.json\n",
    )
    assert "nix is neither a run nor a bundle: no such folder" in run("evaluate", "nix", "--data", data).err


def test_inspect_writes_json_to_a_file(run, tiny_bundle, tmp_path):
    bundle = tiny_bundle()
    assert run("inspect", bundle, "--json", tmp_path / "x.json").out == run("inspect", bundle).out
    assert json.loads((tmp_path / "x.json").read_text()) == run("inspect", bundle, "--json", "-").json


def test_inspect_without_seams(run, tiny_bundle):
    changed = tiny_bundle()
    edit_manifest(changed, lambda manifest: manifest["merge"].update(seam_band=0.0))
    assert "no seam smoothing" in run("inspect", changed).out
