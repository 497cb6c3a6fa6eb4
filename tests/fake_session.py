"""A `Session` in numpy with the arithmetic of tiny_bundle.py: what a detector needs, without an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_bundle import head_constants

from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.bundle.manifest import Manifest
from edge_ad.errors import InferenceError
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.session import Handle, TensorSpec
from edge_ad.setups import Setup
from edge_ad.tiling import Location, Size


class FakeSession:
    """Shared where ``location`` is None, else a head. ``calls`` counts runs; ``poison`` is written into its map."""

    device = "CPU"
    precision = "f32"
    aside = False

    def __init__(self, tile_size: Size, location: Location | None, batch_size: int = 1) -> None:
        image = TensorSpec("image", (batch_size, *tile_size, 3), "uint8")
        features = TensorSpec("features", (batch_size, 1, *tile_size), "float32")
        anomaly_map = TensorSpec("anomaly_map", (batch_size, 1, *tile_size), "float32")
        score = TensorSpec("pred_score", (batch_size,), "float32")
        inputs, outputs = ((image,), (features,)) if location is None else ((features, image), (score, anomaly_map))
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in outputs}
        self.location = location
        self.calls = 0
        self.poison: float | None = None
        self.closed = False

    def run(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> Mapping[str, Handle]:
        if self.closed:
            raise InferenceError("this session is closed")
        for name, spec in self.inputs.items():
            if name not in feeds or feeds[name].shape != spec.shape or feeds[name].dtype != spec.dtype:
                raise InferenceError(f"bad input {name}")
        self.calls += 1
        pixels = feeds["image"].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        if self.location is None:
            return {"features": pixels.mean(1, keepdims=True)}
        gain, offset = head_constants(self.location)
        anomaly_map = np.float32(gain) * np.abs(feeds["features"] - pixels[:, :1]) + np.float32(offset)
        if self.poison is not None:
            anomaly_map[0, 0, 3, 5] = self.poison
        return {"pred_score": np.nanmax(anomaly_map, (1, 2, 3)), "anomaly_map": anomaly_map}

    def fetch(self, handle: Handle) -> NDArray[Any]:
        array: NDArray[Any] = handle
        return array

    def close(self) -> None:
        self.closed = True


def session_of(setup: Setup, graph: GraphFiles, batch_size: int = 1) -> FakeSession:
    """For a graph of a bundle, whose name says what it is."""
    heads = {location.name: location for location in setup.model_locations}
    return FakeSession(setup.tile_size, heads.get(Path(graph.name).stem), batch_size)


def stream_threads() -> list[threading.Thread]:
    """Those of streams that run."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("edge-ad-")]


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns as soon as another thread has made it true."""
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s, "waited 10 s"
        time.sleep(0.001)


def fake_detector(manifest: Manifest, batch_size: int = 1) -> Detector:
    setup = manifest.setup
    heads = [FakeSession(setup.tile_size, location, batch_size) for location in setup.model_locations]
    return Detector(manifest, FakeSession(setup.tile_size, None, batch_size), heads, batch_size=batch_size)
