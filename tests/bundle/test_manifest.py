"""The format of manifest.json, compared whole. Regenerate: PYTHONPATH=tests python tests/bundle/test_manifest.py"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_ad.bundle.manifest import (
    SCHEMA_VERSION,
    FileEntry,
    Format,
    Golden,
    Graph,
    InputSpec,
    Manifest,
    Merge,
    Method,
    Normalisation,
    NormalisationStage,
    Parity,
    Precision,
    Provenance,
    Role,
    Scale,
    ScoreMerge,
)
from edge_ad.errors import ManifestError, UnknownSchemaError
from edge_ad.setups import Setup, Sharing
from edge_ad.tiling import FeatureAxes

GOLDEN = Path(__file__).with_name("golden_manifest.json")


def _entry(path: str, size_bytes: int) -> FileEntry:
    return FileEntry(path, f"{size_bytes:064x}", size_bytes)


MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    format=Format.OPENVINO,
    precision=Precision.INT8,
    method=Method("padim", "resnet18", {"layers": ["layer1", "layer2"], "components": 100}),
    setup=Setup("custom", (23, 58), (23, 31), (23, 27), Sharing.LOCATION),
    input=InputSpec("rgb", "area", proportions=(2.25, 2.5)),
    merge=Merge(ScoreMerge.MAX, 2.0, 0.1),
    normalisation=Normalisation(
        NormalisationStage.TILE,
        "sigma 3 on 12 held-out normal images",
        Scale(0.25, 0.5),
        Scale(0.125, 0.5),
        (Scale(1.5, 2.5), Scale(3.0, 4.0)),
        (Scale(0.5, 1.5), Scale(1.0, 2.0)),
    ),
    graphs=(
        Graph(
            Role.SHARED,
            None,
            Precision.INT8,
            (_entry("graphs/shared.xml", 11), _entry("graphs/shared.bin", 13)),
            False,
            17,
            19,
        ),
        Graph(Role.HEAD, (0, 0), Precision.FP16, (_entry("graphs/r00_c00.xml", 23),), True, 29, 31),
        Graph(Role.HEAD, (0, 1), Precision.FP16, (_entry("graphs/r00_c01.xml", 37),), True, 41, 43),
    ),
    golden=(
        Golden("normal", _entry("golden/normal.png", 47), 0.375, (0.5,) * 64, 0.0625, 0.03125),
        Golden("anomalous", _entry("golden/anomalous.png", 53), 0.875),
    ),
    parity=(Parity("f32", "CPU", 8, 0.001, 0.002, 0.003, 0.99, 0),),
    parity_tolerance=0.25,
    provenance=Provenance("2026-01-02T03:04:05+00:00", {"edge-ad": "0.1.0"}, 7, "ab" * 32, 59, "timm"),
    feature_axes=FeatureAxes.NHWC,
)


def test_the_format_is_the_golden_file() -> None:
    assert MANIFEST.to_json() == json.loads(GOLDEN.read_text())


def test_reading_is_the_inverse_of_writing() -> None:
    assert Manifest.from_json(json.loads(GOLDEN.read_text())) == MANIFEST


def test_a_manifest_of_before_global_models_is_read() -> None:
    plain = json.loads(GOLDEN.read_text())
    del plain["setup"]["global_model"], plain["normalisation"]["fusion"]
    assert Manifest.from_json(plain) == MANIFEST


def test_a_manifest_of_before_feature_axes_means_channels_first() -> None:
    plain = json.loads(GOLDEN.read_text())
    del plain["feature_axes"]
    assert Manifest.from_json(plain) == replace(MANIFEST, feature_axes=FeatureAxes.NCHW)


def test_a_manifest_of_before_golden_maps_has_none() -> None:
    plain = json.loads(GOLDEN.read_text())
    for golden in plain["golden"]:
        del golden["raw_map"], golden["map_tolerance"]
    assert [(golden.raw_map, golden.map_tolerance) for golden in Manifest.from_json(plain).golden] == [((), 0.0)] * 2


def test_a_manifest_of_before_tolerances_of_each_score_has_one_for_all() -> None:
    plain = json.loads(GOLDEN.read_text())
    for golden in plain["golden"]:
        del golden["score_tolerance"]
    assert [golden.score_tolerance for golden in Manifest.from_json(plain).golden] == [None, None]


def test_a_manifest_of_before_blank_tiles_has_none() -> None:
    plain = json.loads(GOLDEN.read_text())
    del plain["setup"]["blank_tiles"]
    assert Manifest.from_json(plain) == MANIFEST


def test_a_blank_tile_has_no_head() -> None:
    setup = replace(MANIFEST.setup, blank_tiles=((0, 1),))
    blank = replace(MANIFEST, setup=setup, graphs=MANIFEST.graphs[:2])
    assert Manifest.from_json(blank.to_json()) == blank
    assert [blank.runs_per_image(graph) for graph in blank.graphs] == [1, 1]
    with pytest.raises(
        ManifestError, match=r"expected one head per model location \['r00_c00'\], but got \[\(0, 0\), "
    ):
        Manifest.from_json(replace(MANIFEST, setup=setup).to_json())


def test_derived_parts() -> None:
    assert [MANIFEST.runs_per_image(graph) for graph in MANIFEST.graphs] == [2, 1, 1]
    assert MANIFEST.shared == MANIFEST.graphs[0]
    assert [head.location for head in MANIFEST.heads] == [(0, 0), (0, 1)]
    assert [file.path for file in MANIFEST.files][-3:] == [
        "graphs/r00_c01.xml",
        "golden/normal.png",
        "golden/anomalous.png",
    ]


def _without(*path: str) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return change


def _with(new: Any, *path: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = new

    return change


def nested(depth: int) -> dict[str, Any]:
    return {"inner": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("parity"), "manifest.json: missing parity"),
        (_without("provenance", "seed"), "manifest.json.provenance: missing seed"),
        (_with(1, "surprise"), "manifest.json: unknown surprise"),
        (_with(1, "merge", "surprise"), "manifest.json.merge: unknown surprise"),
        (_with("0.1", "parity_tolerance"), "manifest.json.parity_tolerance: expected float, but got '0.1'"),
        (_with([0.5], "golden", 0, "raw_map"), "manifest.json.golden: expected 64 values of a map, but got 1"),
        (_with(True, "graphs", 0, "flops"), "manifest.json.graphs[0].flops: expected int, but got True"),
        (_with(1, "graphs", 1, "keep_f32"), "manifest.json.graphs[1].keep_f32: expected bool, but got 1"),
        (_with([0], "graphs", 1, "location"), "manifest.json.graphs[1].location: expected 2 items, but got 1"),
        (_with("fp4", "precision"), "manifest.json.precision: expected one of fp32, fp16, int8, but got 'fp4'"),
        (_with({}, "graphs"), "manifest.json.graphs: expected a list, but got {}"),
        (_with([], "setup"), "manifest.json.setup: expected an object, but got []"),
        (
            _with([[0, 2]], "setup", "blank_tiles"),
            "manifest.json.setup.blank_tiles: expected some of the 2 tiles, and not all, but got [(0, 2)]",
        ),
        (_with([[0, 0], [0, 1]], "setup", "blank_tiles"), None),
        (
            _with(float("inf"), "golden", 0, "raw_score"),
            "manifest.json.golden[0].raw_score: expected a finite number, but got inf",
        ),
        (
            _with([0, 7], "graphs", 1, "location"),
            "manifest.json: expected one head per model location ['r00_c00', 'r00_c01'], but got [(0, 7), (0, 1)]",
        ),
        (_with("shared", "graphs", 1, "role"), None),
        (_with([], "graphs", 0, "files"), "manifest.json: expected 1 to 2 files per openvino graph, but got [0, 1]"),
        (
            _with([24, 31], "setup", "tile_size"),
            "manifest.json.setup: image height 23 px is smaller than the tile's 24 px; "
            "use a smaller tile or a larger image size",
        ),
        (_without("normalisation", "tile_map", 0), "manifest.json: normalisation: expected 2 tile scales"),
        (
            _with(0.5, "normalisation", "score", "low"),
            "manifest.json.normalisation: expected low < threshold, but got Scale(low=0.5, threshold=0.5)",
        ),
        (
            _with("bgr", "input", "color"),
            "manifest.json.input: expected color rgb and resize area, but got InputSpec(color='bgr', resize='area', "
            "bits=None, alpha='drop', proportions=(2.25, 2.5))",
        ),
        (
            _with([2.5, 2.25], "input", "proportions"),
            "manifest.json.input.proportions: expected two numbers above 0, the smaller one first, but got [2.5, 2.25]",
        ),
        (_with([0, 1], "input", "proportions"), "manifest.json.input.proportions: expected two numbers above 0"),
        (_with([1.0], "input", "proportions"), "manifest.json.input.proportions: expected 2 items, but got 1"),
        (_with(0, "input", "bits"), "manifest.json.input: expected 8 to 16 bits and alpha drop, black, white, but got"),
        (_with("keep", "input", "alpha"), "manifest.json.input: expected 8 to 16 bits and alpha drop, black, white"),
        (
            _with(0, "merge", "seam_sigma_px"),
            "manifest.json.merge: expected seam_sigma_px > 0, at most 1000, and seam_band in [0, 1]: "
            "Merge(score=<ScoreMerge.MAX: 'max'>, seam_sigma_px=0.0, seam_band=0.1)",
        ),
        (
            _with([2**14, 2**14], "setup", "image_size"),
            "manifest.json.setup.image_size: 268435456 pixels; at most 134217728",
        ),
        (_with([23, 10**400], "setup", "image_size"), None),
        (_with([23, -58], "setup", "image_size"), None),
        (_with([0, 27], "setup", "stride"), "manifest.json.setup.stride: expected 1 to 134217728 px, but got (0, 27)"),
        (
            lambda value: value["setup"].update(image_size=[8192, 8192], tile_size=[64, 64], stride=[64, 64]),
            "manifest.json.setup: up to 16384 tiles; at most 10000",
        ),
        (
            _with(2**31 + 1, "graphs", 0, "files", 0, "size_bytes"),
            "manifest.json: graphs/shared.xml: 2147483649 bytes; at most 2147483648",
        ),
        (_with(-1, "golden", 0, "file", "size_bytes"), None),
        (
            _with({"low": -1e308, "threshold": 1e308}, "normalisation", "score"),
            "manifest.json.normalisation: Scale(low=-1e+308, threshold=1e+308) is no scale in float32",
        ),
        (_with({"low": 0.0, "threshold": 1e39}, "normalisation", "tile_map", 1), None),  # beyond its largest number
        (_with({"low": 1.0, "threshold": 1.0 + 1e-9}, "normalisation", "map"), None),  # one number there
        (_with({"low": 0.0, "threshold": 1e-40}, "normalisation", "map"), None),  # the gain is infinite
        (_with(-0.01, "parity_tolerance"), "manifest.json.parity_tolerance: expected 0 to 1e+06 of the scale, but got"),
        (_with(1e9, "golden", 0, "map_tolerance"), "manifest.json.golden[0].map_tolerance: expected 0 to 1e+06"),
        (_with(1e9, "golden", 0, "score_tolerance"), "manifest.json.golden[0].score_tolerance: expected 0 to 1e+06"),
        (_with(nested(900), "method", "config"), "manifest.json: nested more than 32 deep; export the bundle again"),
        (_with([[math.inf]], "method", "config", "k"), "manifest.json.method.config: expected finite numbers"),
        (_with(10**400, "parity_tolerance"), "manifest.json.parity_tolerance: expected a finite number"),
    ],
)
def test_what_is_refused(change: Callable[[Any], None], message: str | None) -> None:
    value = MANIFEST.to_json()
    change(value)
    with pytest.raises(ManifestError) as raised:
        Manifest.from_json(value)
    if message is not None:
        assert str(raised.value).startswith(message)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_is_refused(version: Any) -> None:
    value = MANIFEST.to_json() | {"schema_version": version}
    with pytest.raises(UnknownSchemaError, match=f"schema_version {version!r} is not the 1 this edge-ad reads"):
        Manifest.from_json(value)


@pytest.mark.parametrize("value", [None, [], {}, "text"])
def test_anything_else_is_no_manifest(value: Any) -> None:
    with pytest.raises(ManifestError, match="expected an object with schema_version"):
        Manifest.from_json(value)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(MANIFEST.to_json(), indent=2) + "\n")
