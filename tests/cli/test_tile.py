from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from signing_keys import write_keys
from tiny_bundle import tiny_manifest, tiny_setup

from edge_ad.bundle.manifest import Normalisation, NormalisationStage, Scale

SCALES = (Scale(0.2, 1.2),) * 4
BY_TILE = Normalisation(NormalisationStage.TILE, "fixed", Scale(0.2, 1.2), Scale(0.1, 0.9), SCALES, SCALES)


def outputs(path, size):
    model = ov.Core().compile_model(path, "CPU")
    found = model({"image": np.full((1, *size, 3), 90, np.float32)})
    return {port.any_name: found[port] for port in model.outputs}


def test_one_tile_of_several(run, tiny_bundle, tmp_path):
    bundle, path = tiny_bundle(tiny_manifest(normalisation=BY_TILE)), tmp_path / "bolt.xml"
    code, out, err = run("tile", bundle, "--tile", "r01_c00", "-o", path)
    assert (code, out, err) == (0, f"{path}\n", "")
    found = outputs(path, (23, 29))
    assert set(found) == {"pred_score", "anomaly_map", "pred_label", "pred_mask"}
    assert found["pred_label"].tolist() == [False]
    code, out, err = run("tile", bundle, "--tile", "r01_c00", "-o", path)
    assert (code, out, err) == (2, "", f"error: {path} exists; choose another file\n")
    code, _, err = run("tile", bundle, "-o", tmp_path / "other.xml")
    assert (code, "has 4 tiles; choose one of r00_c00" in err) == (2, True)


def test_the_only_tile_needs_no_name(run, tiny_bundle, tmp_path):
    bundle = tiny_bundle(tiny_manifest(tiny_setup((23, 29), (23, 29), (23, 29))))
    assert run("tile", bundle, "-o", tmp_path / "bolt").out == f"{tmp_path / 'bolt.xml'}\n"
    assert outputs(tmp_path / "bolt.xml", (23, 29))["anomaly_map"].shape == (1, 1, 23, 29)


@pytest.mark.parametrize("change", ["unsigned", "changed"])
def test_a_bundle_that_is_not_trusted(run, tiny_bundle, tmp_path, change):
    bundle = tiny_bundle(tiny_manifest(tiny_setup((23, 29), (23, 29), (23, 29))))
    _, public = write_keys(tmp_path, "release")
    if change == "changed":
        (bundle / "graphs" / "shared.bin").write_bytes(b"changed")
    options = ("--require-signature", public) if change == "unsigned" else ()
    assert run("tile", bundle, *options, "-o", tmp_path / "bolt").code == 2
    assert not (tmp_path / "bolt.xml").exists()
