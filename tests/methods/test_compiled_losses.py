"""Whatever a method's loss does, torch can compile it, and what is trained by it is the same."""

import functools

import pytest
import torch
from tiny_methods import PARAMETERS, TILE_SIZE, tiny
from tiny_run import scene, tile_setup, write_images

from edge_ad.methods import method_class
from edge_ad.methods.gradient import GradientModel
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location

LONG_TO_TRACE = ("fastflow", "reverse_distillation")  # plain networks as the others are
TRAINED = [name for name in PARAMETERS if issubclass(method_class(name), GradientModel) and name not in LONG_TO_TRACE]
SETUP = tile_setup((64, 96), TILE_SIZE)


@pytest.mark.parametrize("method", TRAINED)
def test_a_compiled_loss_trains_alike(method, tmp_path, monkeypatch):
    # Graphs and gradients as torch traces them, run without a compiler
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    changes = {"steps": 3, "batch_size": 2}
    if method in ("efficient_ad", "efficient_ad_ast"):
        changes["penalty_images"] = str(write_images(tmp_path / "photographs", scene(5, (80, 90))))

    def trained(compiled):
        model = tiny(method, compiled=compiled, **changes)
        image = model.head_takes_image
        tiles = TileStream(
            scene(10, SETUP.image_size), SETUP.grid, (Location(0, 0),), model.extract, 4, with_image=image
        )
        torch._dynamo.reset()
        return model.fit(tiles, seed=3).state_dict()

    eager, compiled = trained(False), trained(True)
    for name, value in eager.items():
        torch.testing.assert_close(
            compiled[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
