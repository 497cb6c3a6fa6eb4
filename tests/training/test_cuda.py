"""Training, thresholds and scoring on a CUDA device: runs finish there, and the CPU scores their heads alike."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_methods import PARAMETERS, TILE_SIZE, planted, scores_of, tiny
from tiny_run import scene, scene_images, tile_setup, write_images
from torch import nn

from edge_ad.methods.head_inputs import HeadInputs, memory_budget
from edge_ad.methods.tile_model import TileModel, TileStream
from edge_ad.runtime.session import TensorSpec
from edge_ad.setups import ExtractorScope, Setup
from edge_ad.tiling import Location
from edge_ad.training.distillation import Distillation, distil
from edge_ad.training.run_detector import run_detector
from edge_ad.training.run_folder import RunFolder
from edge_ad.training.torch_graph import TorchGraph
from edge_ad.training.trainer import open_device, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

SETUP = tile_setup((64, 96), TILE_SIZE)


def on_cuda(model: TileModel) -> TileModel:
    return model.to(open_device("cuda"))


def trained(method: str, folder: Path, setup: Setup = SETUP, **changes: object) -> RunFolder:
    model = on_cuda(tiny(method, **changes))
    run = train(model, setup, scene_images(setup, fit=12), folder, seed=5)
    assert model.device.type == "cuda"
    assert {value.device.type for value in model.extractor.state_dict().values()} == {"cuda"}
    return run


def assert_scored_alike(run: RunFolder) -> None:
    images = np.concatenate(planted(run.settings.setup))
    with run_detector(run) as here, run_detector(run, on_cuda(run.model())) as there:
        assert (here.device, there.device) == ("CPU", "CUDA:0")
        expected, got = scores_of(here, images), scores_of(there, images)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3 * np.ptp(expected))


@pytest.mark.parametrize("method", PARAMETERS)
def test_the_cpu_scores_alike_what_was_trained_on_the_device(method: str, tmp_path: Path) -> None:
    assert_scored_alike(trained(method, tmp_path / "run"))


def test_windows_on_the_whole_image(tmp_path: Path) -> None:
    assert_scored_alike(trained("padim", tmp_path / "run", replace(SETUP, extractor_scope=ExtractorScope.IMAGE)))


def test_a_global_model(tmp_path: Path) -> None:
    assert_scored_alike(trained("stfpm", tmp_path / "run", replace(SETUP, global_model=True)))


def test_bf16_training_steps(tmp_path: Path) -> None:
    assert_scored_alike(trained("reverse_distillation", tmp_path / "run", bf16=True))


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no Triton, by which torch compiles for CUDA")
@pytest.mark.parametrize("method", ["fastflow", "stfpm"])
def test_a_compiled_loss(method: str, tmp_path: Path) -> None:
    assert_scored_alike(trained(method, tmp_path / "run", compiled=True, bf16=True))


@pytest.mark.parametrize("method", ["efficient_ad", "efficient_ad_ast"])
def test_penalty_on_photographs(method: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photographs", scene(5, (80, 90)))
    assert_scored_alike(trained(method, tmp_path / "run", penalty_images=str(folder), steps=20))


@pytest.mark.parametrize("method", ["padim", "patchcore", "stfpm"])
def test_an_interrupted_run_is_continued_on_the_device(method: str, tmp_path: Path) -> None:
    run = trained(method, tmp_path / "run")
    (run.path / "normalisation.json").unlink()
    run.head_path(Location(0, 1)).unlink()
    continued = trained(method, tmp_path / "run")
    assert not continued.missing()
    assert continued.has_normalisation


def test_inputs_are_held_on_the_device() -> None:
    model = on_cuda(tiny("stfpm"))
    tiles = TileStream(scene(5, SETUP.image_size), SETUP.grid, (Location(0, 0),), model.extract, 2, with_image=True)
    held, again = HeadInputs(tiles, model.device), HeadInputs(tiles, model.device, 0)
    assert memory_budget(model.device) > 0
    assert held.held is not None
    assert again.held is None
    for inputs in (held, again):
        image, *features = inputs[[4, 0]]
        assert {part.device.type for part in (image, *features)} == {"cuda"}
        assert np.array_equal(image.cpu(), tiles.cut([4, 0]))
    for one, other in zip(held[[4, 0]], again[[4, 0]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(256, 64, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.conv(x),)


def test_a_session_computes_in_float32_and_not_in_tf32() -> None:
    torch.manual_seed(0)
    module, x = Convolution().eval(), torch.randn(1, 256, 20, 20)
    with torch.no_grad():
        (exact,) = module.double()(x.double())
    graph = TorchGraph(
        module.float().to(open_device("cuda")),
        (TensorSpec("x", (1, 256, 20, 20), "float32"),),
        (TensorSpec("y", (1, 64, 18, 18), "float32"),),
    )
    assert graph.example()[0].is_cuda
    assert graph.flops() == 2 * 64 * 18 * 18 * 256 * 9
    session = graph.session()
    handle = session.run({"x": x.numpy()})["y"]
    assert handle.is_cuda
    assert session.run({"x": x.cuda()})["y"].is_cuda
    error = np.abs(session.fetch(handle) - exact.numpy()).max()
    assert error < 1e-5  # TF32: some 1e-3


def test_a_teacher_is_distilled_and_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "photographs", scene(4, (80, 90)))
    settings = Distillation("tiny", "resnet18", weights="none", steps=6, batch_size=2, image_px=64)

    def kill(done: int, total: int, what: str) -> None:
        if what.startswith("distilling") and done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("edge_ad.training.distillation.STEPS_PER_SAVE", 3)
    output, device = tmp_path / "teacher.safetensors", open_device("cuda")
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        distil(folder, output, settings, device=device, progress=kill)
    torch.manual_seed(0)
    assert np.isfinite(distil(folder, output, settings, device=device))
