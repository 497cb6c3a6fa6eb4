from __future__ import annotations

from pathlib import Path

import pytest
from experiment_fakes import TINY, some_config

from edge_ad.bundle.manifest import Format, Precision, ScoreMerge
from edge_ad.errors import ConfigError, GeometryError, InputError
from edge_ad.experiment.config import Config, Variant, parse_config, read_config
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.setups import SETUPS, Sharing

EXAMPLES = sorted((Path(__file__).parents[2] / "benchmarks" / "experiments").glob("*.toml"))


def test_what_is_not_written_has_a_default():
    config = parse_config({"setups": ["ens9"], "datasets": [{"path": "data/bolt"}]})
    assert config.methods == ("padim",)
    assert config.precisions == (Variant.TORCH,)
    assert config.score_merges == (ScoreMerge.MEAN,)
    assert (config.seeds, config.threshold, config.held_out) == ((0,), "sigma:3", 0.15)
    assert (config.format, config.execution, config.device) == (Format.OPENVINO, ExecutionPrecision.AUTO, "CPU")
    assert config.benchmark is None
    (dataset,) = config.datasets
    assert (dataset.label, dataset.root, dataset.layout, dataset.categories) == ("bolt", Path("data/bolt"), "mvtec", ())
    (backbone,) = config.backbones
    assert (backbone.name, backbone.weights_argument) == ("tf_efficientnet_lite0", "auto")
    assert config.setups[0].setup == SETUPS["ens9"]


def test_a_file_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_DATA", "/data")
    path = tmp_path / "all.toml"
    path.write_text("""
        methods = ["padim"]
        setups = ["sm256", {name = "wide", image_size = [64, 96], tile_size = [32, 48], sharing = "all"}]
        precisions = ["torch", "fp32", "fp16", "int8"]
        score_merges = ["max"]
        seeds = [3]
        format = "onnx"
        held_out = 0.5
        threshold = "quantile:0.9"
        metrics_size = [32, 64]
        pro_limit = 0.1
        spro_limit = 0.2
        device = "GPU"
        execution = "f32"
        parity_tolerance = 1
        [[datasets]]
        path = "${SOME_DATA}/visa"
        name = "VisA"
        layout = "visa"
        categories = ["pcb1"]
        [[backbones]]
        name = "resnet18"
        weights = "${SOME_DATA}/resnet18.safetensors"
        layers = ["layer1"]
        [parameters.padim]
        dimensions = 20
        [benchmark]
        warmup = 1
        iterations = 2
        batch = 0
    """)
    config = read_config(path)
    assert [variant.precision for variant in config.precisions] == [None, *Precision]
    wide = config.setups[1].setup
    assert (wide.name, wide.image_size, wide.stride, wide.sharing) == ("custom", (64, 96), (32, 48), Sharing.ALL)
    assert (config.datasets[0].label, config.datasets[0].root) == ("VisA", Path("/data/visa"))
    assert config.backbones[0].weights_argument == "/data/resnet18.safetensors"
    assert (config.pro_limit, config.spro_limit) == (0.1, 0.2)
    assert (config.metrics_size, config.parity_tolerance) == ((32, 64), 1.0)
    assert config.parameters == {"padim": {"dimensions": 20}}
    assert config.benchmark is not None
    assert (config.benchmark.iterations, config.benchmark.batch) == (2, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metods": ["padim"]}, "experiment: unknown metods"),
        ({"datasets": [{"path": "x", "pth": "y"}]}, r"experiment.datasets\[0\]: unknown pth"),
        ({"datasets": [{"name": "x"}]}, r"experiment.datasets\[0\]: missing path"),
        ({"benchmark": {"runs": 3}}, "experiment.benchmark: unknown runs"),
        ({"methods": ["nix"]}, "unknown method 'nix'; known: padim"),
        ({"parameters": {"nix": {}}}, "unknown method 'nix'"),
        ({"setups": ["ens10"]}, "unknown setup 'ens10'; known: sm256"),
        ({"setups": [TINY | {"name": "ens9"}]}, "ens9 is a setup of the paper"),
        ({"precisions": ["int4"]}, "expected one of torch, fp32, fp16, int8, but got 'int4'"),
        ({"score_merges": "mean"}, "experiment.score_merges: expected a list"),
        ({"seeds": []}, "seeds: expected at least one"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
        ({"seeds": [1.5]}, r"experiment.seeds\[0\]: expected int"),
        ({"datasets": [{"path": "a/x"}, {"path": "b/x"}]}, "datasets: x is there twice"),
        ({"datasets": [{"path": "x", "layout": "nix"}]}, "unknown layout 'nix'; known: mvtec"),
        ({"datasets": {"path": "x"}}, "experiment.datasets: expected a list"),
        ({"threshold": "f1"}, "'f1' needs labelled images"),
        ({"threshold": "sigma"}, "unknown threshold rule 'sigma'"),
        ({"pro_limit": 0.0}, r"pro_limit: expected a false-positive rate in \(0, 1\], but got 0\.0"),
        ({"spro_limit": 1.5}, r"spro_limit: expected a false-positive rate in \(0, 1\], but got 1\.5"),
        ({"held_out": 1.0}, "held_out: expected a fraction"),
        ({"seeds": [0, -1]}, "seeds: expected 0 or more, but got -1"),
        ({"metrics_size": [0, -5]}, "metrics_size: expected 1 or more, but got 0"),
        ({"parity_tolerance": -0.5}, r"parity_tolerance: expected 0 or more, but got -0\.5"),
        ({"benchmark": {"warmup": -1}}, r"benchmark\.warmup: expected 0 or more, but got -1"),
        ({"benchmark": {"iterations": 0}}, r"benchmark\.iterations: expected 1 or more, but got 0"),
        ({"benchmark": {"batch": -3}}, r"benchmark\.batch: expected 0 or more, but got -3"),
        ({"benchmark": {"throughput_iterations": 0}}, r"benchmark\.throughput_iterations: expected 1 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, object], said: str):
    with pytest.raises(InputError, match=said):
        some_config(**changes)


def test_sizes_that_make_no_grid_are_refused():
    with pytest.raises(GeometryError):
        some_config(setups=[TINY | {"stride": [64, 48]}])


@pytest.mark.parametrize("table", ["datasets", "backbones"])
def test_a_variable_that_is_not_set_is_named(table: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    entry = {"path": "${NOT_SET}/x"} if table == "datasets" else {"name": "resnet18", "weights": "${NOT_SET}/x"}
    with pytest.raises(ConfigError, match="the environment variable NOT_SET is not set"):
        some_config(**{table: [entry]})


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot read"), (b"setups = [", "is not valid TOML"), (b"\xff", "is not valid TOML"), (b"", "missing")],
)
def test_errors_name_the_file(content: bytes | None, said: str, tmp_path: Path):
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EDGE_AD_DATA", "/data")
    assert isinstance(read_config(path), Config)


def test_there_are_examples():
    assert EXAMPLES
