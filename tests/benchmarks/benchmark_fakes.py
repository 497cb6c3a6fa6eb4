"""A manifest, and sessions that only count: the benchmark room needs no engine to be tested."""

from dataclasses import replace

import numpy as np

from edge_ad.benchmarks.ceilings import Achieved, Ceilings, ComputeCeiling
from edge_ad.benchmarks.environment import Environment
from edge_ad.benchmarks.memory import Memory
from edge_ad.benchmarks.protocol import Latency, Schedule, Throughput
from edge_ad.benchmarks.report import SCHEMA_VERSION, BenchmarkReport, Config, bundle_facts
from edge_ad.benchmarks.timing import Timing
from edge_ad.bundle.files import write_manifest
from edge_ad.bundle.manifest import (
    FileEntry,
    Format,
    Graph,
    InputSpec,
    Manifest,
    Merge,
    Method,
    Normalisation,
    NormalisationStage,
    Precision,
    Provenance,
    Role,
    Scale,
    ScoreMerge,
)
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.session import TensorSpec
from edge_ad.setups import Sharing, make_setup

TILE = (17, 19)
SHARED_FLOPS, HEAD_FLOPS = 1_000_000, 30_000
SHARED_BYTES, HEAD_BYTES = 500, 70


def make_manifest(
    *, sharing=Sharing.LOCATION, shared=True, precision=Precision.INT8, method="padim", global_model=False
):
    setup = make_setup("ens9", image_size=(34, 38), tile_size=TILE, sharing=sharing)  # 2 x 2 tiles
    setup = replace(setup, global_model=global_model)
    graphs = []
    for location in setup.model_locations:
        entry = FileEntry(f"graphs/{location.name}.onnx", "0" * 64, HEAD_BYTES)
        graphs.append(Graph(Role.HEAD, tuple(location), Precision.FP16, (entry,), True, 11, HEAD_FLOPS))
    if shared:
        files = (FileEntry("graphs/shared.onnx", "0" * 64, SHARED_BYTES),)
        graphs.insert(0, Graph(Role.SHARED, None, precision, files, False, 1300, SHARED_FLOPS))
    return Manifest(
        schema_version=1,
        format=Format.ONNX,
        precision=precision,
        method=Method(method, "resnet18", {}),
        setup=setup,
        input=InputSpec("rgb", "area"),
        merge=Merge(ScoreMerge.MEAN, 2.0, 0.1),
        normalisation=Normalisation(NormalisationStage.NONE, "none", Scale(0.0, 1.0), Scale(0.0, 1.0), (), ()),
        graphs=tuple(graphs),
        golden=(),
        parity=(),
        parity_tolerance=0.0,
        provenance=Provenance("2025-01-01T00:00:00+00:00", {}, 0, "", 0, "none"),
    )


class CountingSession:
    """Gives back zeros; keeps the tiles it saw."""

    device = "NOWHERE"

    def __init__(self, outputs, inputs, batch_size=1, precision="f32"):
        self.inputs = {name: _spec(name, batch_size) for name in inputs}
        self.outputs = {name: _spec(name, batch_size) for name in outputs}
        self.precision = precision
        self.seen = []
        self.closed = False

    def run(self, feeds):
        assert set(self.inputs) <= set(feeds)
        if "image" in self.inputs:
            assert feeds["image"].flags.c_contiguous
            self.seen.append(feeds["image"].copy())
        return {name: np.zeros(spec.shape, spec.dtype) for name, spec in self.outputs.items()}

    def fetch(self, handle):
        return handle

    def close(self):
        self.closed = True


def _spec(name, batch_size):
    shapes = {
        "image": ((*TILE, 3), "uint8"),
        "features": ((5, 7), "float32"),
        "anomaly_map": ((1, *TILE), "float32"),
        "pred_score": ((), "float32"),
    }
    shape, dtype = shapes[name]
    return TensorSpec(name, (batch_size, *shape), dtype)


def make_detector(manifest, batch_size=1):
    shared = CountingSession(("features",), ("image",), batch_size, "bf16") if manifest.shared else None
    inputs = ("features",) if shared else ("image",)
    heads = [CountingSession(("anomaly_map", "pred_score"), inputs, batch_size) for _ in manifest.heads]
    return Detector(manifest, shared, heads, batch_size=batch_size)


def write_bundle(folder, manifest):
    """A folder with a manifest and nothing else: enough where loading is replaced."""
    write_manifest(folder, manifest)
    return folder


def make_report(method="padim", warmup=1000, iterations=1000):
    """A report whose every number is chosen here."""
    manifest = make_manifest(method=method)
    return BenchmarkReport(
        schema_version=SCHEMA_VERSION,
        protocol=Schedule(warmup, iterations, 16, iterations).protocol(method),
        config=Config("bolt.edgead", "CPU", "auto", 2, Schedule(warmup, iterations, 16, iterations), "noise"),
        environment=Environment(
            time_utc="2025-01-02T03:04:05+00:00",
            cpu="Test CPU",
            cpu_flags=("avx2", "avx512_vnni"),
            logical_cpus=4,
            usable_cpus=2,
            cpu_quota=None,
            governor="performance",
            load_average=0.1,
            memory_bytes=8 * 2**30,
            os="Linux",
            python="CPython 3.11",
            versions={"numpy": "2.0"},
            device="CPU",
            device_name="Test <CPU>",
            driver=None,
        ),
        bundle=bundle_facts(manifest, "ab" * 32, 10),
        executed={"shared": "bf16", "heads": "f32"},
        load_ms=120.0,
        first_inference_ms=9.0,
        latency=Latency(Timing((4.0, 5.0, 6.0)), Timing((4.0, 4.0, 4.0)), Timing((5.0, 6.0, 7.0))),
        throughput=Throughput(16, Timing((50.0, 30.0))),
        memory=Memory(10 * 2**20, 50 * 2**20, 60 * 2**20, None, None),
        ceilings=Ceilings((ComputeCeiling("int8", 800.0, "test"), ComputeCeiling("f32", 200.0, "test")), 20.0),
        achieved=Achieved(1.0, 0.5, 4.0, 300.0, 25.0, "int8: test; f32: test"),
    )
