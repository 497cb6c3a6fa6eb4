"""The patch description network: the paper's shapes, where positions lie in a tile, and files from elsewhere."""

import pytest
import torch
from safetensors.torch import save_file

from edge_ad.errors import InputError, WrongWeightsError
from edge_ad.methods import create_model
from edge_ad.methods.parts.pdn import FIELD_PX, PatchDescription, cells, layers_of, positions


@pytest.mark.parametrize(
    ("size", "widen", "parameters"),
    [("s", 1, 2_694_144), ("s", 2, 4_267_392), ("m", 1, 8_026_624), ("m", 2, 11_615_488)],
)
def test_parameters_and_shape_of_the_paper(size, widen, parameters):
    """8.06 million with the autoencoder's 1.096 for S, 20.74 for M; 56 x 56 descriptions of 256 px."""
    network = PatchDescription(layers_of(size), widen=widen, mirror=False)
    assert sum(value.numel() for value in network.parameters()) == parameters
    with torch.device("meta"):
        network = PatchDescription(layers_of(size), widen=widen, mirror=False)
        assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 384 * widen, 56, 56)


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("tile_size", [(36, 36), (47, 64), (63, 41), (99, 130)])
def test_number_of_positions(tile_size, mirror):
    with torch.device("meta"):
        described = PatchDescription(layers_of("s"), mirror=mirror)(torch.zeros(1, 3, *tile_size))
    assert described.shape[2:] == positions(tile_size, mirror=mirror)


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("size", ["s", "m"])
def test_positions_lie_where_their_fields_have_their_middle(size, mirror):
    """The pixels that a description depends on, by its gradient, are 33 x 33 around the pixel that `cells` says."""
    torch.manual_seed(0)
    network = PatchDescription(layers_of(size), mirror=mirror).double()
    image = torch.randn(1, 3, 72, 80, dtype=torch.float64, requires_grad=True)
    first, step = cells(mirror=mirror)
    row, col = 6, 7  # far enough from the edges
    network(image)[0, :, row, col].sum().backward()
    seen = image.grad[0].abs().sum(0) > 0
    rows, cols = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    assert (rows.min() + rows.max()) / 2 == first + step * row
    assert (cols.min() + cols.max()) / 2 == first + step * col
    assert rows.max() - rows.min() + 1 == FIELD_PX


def test_mirrored_positions_cover_a_tile_evenly():
    first, step = cells(mirror=True)
    count = positions((256, 256), mirror=True)[0]
    assert abs(first - (step - 1) / 2) <= 0.5  # of a pixel, from the middle of the first four
    assert count * step == 256


@pytest.mark.parametrize("names", ["{}", "conv{}", "layers.{}.0"])
def test_weights_are_taken_by_order_whatever_they_are_called(names, tmp_path):
    torch.manual_seed(1)
    network = PatchDescription(layers_of("s"))
    convolutions = [module for module in network.net if isinstance(module, torch.nn.Conv2d)]
    state = {}
    for index, convolution in enumerate(convolutions, start=8):  # 8, 9, 10, 11: as text 10 comes first
        prefix = names.format(index)
        state |= {f"{prefix}.weight": convolution.weight.data, f"{prefix}.bias": convolution.bias.data}
    save_file(state, tmp_path / "teacher.safetensors")
    model = create_model("efficient_ad", (64, 64), weights=str(tmp_path / "teacher.safetensors"))
    assert model.weights_source == "teacher.safetensors"
    for key, value in model.teacher.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[key])


def test_weights_of_another_size_are_refused(tmp_path):
    save_file(PatchDescription(layers_of("m")).state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(WrongWeightsError, match="12 tensors, but the network has 8"):
        create_model("efficient_ad", (64, 64), weights=str(tmp_path / "m.safetensors"))


def test_bad_sizes():
    with pytest.raises(InputError, match=r"size: expected one of s, m.*but got 'l'"):
        layers_of("l")
    with pytest.raises(InputError, match="a tile of 15x40 is too small for EfficientAD"):
        positions((15, 40), mirror=True)
    with pytest.raises(InputError, match="a tile of 32x40 is too small for EfficientAD"):
        positions((32, 40), mirror=False)
