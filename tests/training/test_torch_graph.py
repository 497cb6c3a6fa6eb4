"""Torch modules as graphs: names, shapes, parameters and operations counted by hand, and the session that runs them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import scene, tile_setup, tiny_run
from torch import nn

from edge_ad.runtime.session import TensorSpec
from edge_ad.tiling import Location
from edge_ad.training.run_detector import run_detector, run_manifest
from edge_ad.training.torch_graph import TorchGraph, head_graph, shared_graph

SETUP = tile_setup((64, 96), (32, 48))


class Small(nn.Module):
    """Convolution 3 -> 5 with a 3x3 kernel, and a product with a stored matrix."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.register_buffer("matrix", torch.rand(11, 7))
        self.register_buffer("scratch", torch.rand(100), persistent=False)

    def forward(self, image, weights):
        features = self.conv(image.permute(0, 3, 1, 2).float())  # (N, 5, 13, 11)
        return features @ self.matrix, weights.sum(1)  # (N, 5, 13, 7), (N,)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return TorchGraph(
        Small().eval(),
        (TensorSpec("image", (1, 13, 11, 3), "uint8"), TensorSpec("weights", (1, 2), "float32")),
        (TensorSpec("product", (1, 5, 13, 7), "float32"), TensorSpec("total", (1,), "float32")),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run") / "run", SETUP)


def test_parameters_are_what_is_stored(small):
    assert small.parameters == 3 * 5 * 9 + 5 + 11 * 7


def test_flops_count_multiply_and_add_apart(small):
    convolution = 2 * 13 * 11 * 5 * (3 * 9)
    product = 2 * 5 * 13 * 11 * 7
    assert small.flops() == convolution + product


def test_examples_have_the_batch_asked_for(small):
    image, weights = small.example(4)
    assert (image.shape, image.dtype) == ((4, 13, 11, 3), torch.uint8)
    assert (weights.shape, weights.dtype) == ((4, 2), torch.float32)


def test_a_session_runs_the_module(small):
    session = small.session()
    rng = np.random.default_rng(0)
    image, weights = rng.integers(0, 256, (3, 13, 11, 3), np.uint8), rng.random((3, 2), np.float32)
    outputs = session.run({"weights": weights, "image": image, "more": weights})
    assert list(outputs) == ["product", "total"]
    with torch.no_grad():
        conv = small.module.conv
        features = F.conv2d(torch.from_numpy(image).permute(0, 3, 1, 2).float(), conv.weight, conv.bias, padding=1)
    np.testing.assert_allclose(session.fetch(outputs["total"]), weights.sum(1), rtol=1e-6)
    expected = features.numpy() @ small.module.matrix.numpy()
    np.testing.assert_allclose(session.fetch(outputs["product"]), expected, rtol=1e-4, atol=1e-3)
    assert (session.device, session.precision) == ("CPU", "f32")
    session.close()


def test_a_session_takes_the_handles_of_another(trained):
    run, images = trained
    model = run.model()
    shared = shared_graph(model)
    session, head = shared.session(), head_graph(model, run.head(model, Location(0, 0)), shared).session()
    tile = np.ascontiguousarray(images.fit[:2, :32, :48])
    outputs = head.run(session.run({"image": tile}))
    assert head.fetch(outputs["anomaly_map"]).shape == (2, 1, 32, 48)
    assert head.fetch(outputs["pred_score"]).shape == (2,)


def test_graphs_of_a_method(trained):
    run, _ = trained
    model = run.model()
    shared = shared_graph(model)
    graph = head_graph(model, run.head(model, Location(1, 1)), shared)
    assert shared.inputs == (TensorSpec("image", (1, 32, 48, 3), "uint8"),)
    assert shared.outputs == (TensorSpec("embedding", (1, 8, 12, 9), "float32"),)
    assert {spec.name: spec.shape for spec in graph.outputs} == {"anomaly_map": (1, 1, 32, 48), "pred_score": (1,)}
    # 96 positions, 9 channels, 7 tiles: mean, weight, 6 directions of 9
    assert graph.parameters == 9 * 96 + 96 + 96 * 6 * 9
    # B (x - m) per position; A_h D A_w^T, first 32 x 8 x 12, then 32 x 12 x 48
    assert graph.flops() == 2 * 96 * 6 * 9 + 2 * 32 * 8 * 12 + 2 * 32 * 12 * 48


def test_the_detector_of_a_run_is_its_heads_on_its_tiles(trained):
    """One location after the other through bare modules, against the detector's merged result."""
    run, _ = trained
    image = scene(1, SETUP.image_size, seed=9)
    model = run.model()
    with run_detector(run) as detector, torch.no_grad():
        raw = detector.raw(image)
        scores = []
        for location in SETUP.model_locations:
            top, left = 32 * location.row, 48 * location.col
            tile = torch.from_numpy(image[:, top : top + 32, left : left + 48].copy())
            anomaly_map, score = run.head(model, location)(*model.extract(tile))
            scores.append(float(score))
            inner = np.s_[top + 4 : top + 28, left + 5 : left + 43]  # seams are smoothed within a tenth of the tile
            np.testing.assert_allclose(raw.maps[0][inner], anomaly_map[0, 0, 4:28, 5:43].numpy(), rtol=1e-4)
    assert raw.scores[0] == pytest.approx(max(scores), rel=1e-5)


def test_the_manifest_of_a_run(trained):
    run, images = trained
    manifest = run_manifest(run, run.normalisation())
    assert (manifest.method.name, manifest.method.backbone) == ("padim", "test_resnet")
    assert manifest.setup == SETUP
    assert manifest.normalisation == run.normalisation()
    provenance = manifest.provenance
    assert (provenance.training_images, provenance.data_digest) == (7, images.source.digest)
    assert {"edge-ad", "torch", "numpy"} <= provenance.versions.keys()
