import numpy as np
import pytest
import torch

from edge_ad.errors import NonFiniteValuesError
from edge_ad.methods.head_inputs import HeadInputs, memory_budget
from edge_ad.methods.tile_model import TileStream, location_seed
from edge_ad.tiling import Location, TileGrid

GRID = TileGrid((10, 14), (6, 8), (5, 7))  # the last row and column of tiles reach over the image
LOCATIONS = (Location(0, 0), Location(1, 1))
CPU = torch.device("cpu")


class Extractor:
    """Two features of each tile; counts how many tiles it has seen."""

    def __init__(self):
        self.seen = 0

    def __call__(self, image):
        self.seen += len(image)
        values = image.float()
        return values.mean((1, 2)), values[:, :3].sum(3)


def stream(extract, **options):
    images = np.random.default_rng(0).integers(0, 256, (5, 10, 14, 3), np.uint8)
    return TileStream(images, GRID, LOCATIONS, extract, 3, **options)


def test_tiles_by_number_go_image_by_image_within_a_location():
    tiles = stream(Extractor())
    numbers = [9, 0, 4, 5]
    cut = tiles.cut(numbers)
    assert np.array_equal(cut[1], tiles.images[0, :6, :8])
    assert np.array_equal(cut[2], tiles.images[4, :6, :8])
    for tile, image in ((cut[0], 4), (cut[3], 0)):
        assert np.array_equal(tile[:5, :7], tiles.images[image, 5:, 7:])
        assert not tile[5:].any()
        assert not tile[:, 7:].any()
    held = [image for image, *_ in stream(Extractor(), with_image=True)]
    assert np.array_equal(torch.cat(held), tiles.cut(range(10)))


@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize(("budget", "extractions"), [(10**6, 10), (0, 3 + 10 + 4)])
def test_inputs_are_held_where_they_fit_and_else_extracted_again(with_image, budget, extractions):
    extract = Extractor()
    inputs = HeadInputs(stream(extract, with_image=with_image), CPU, budget)
    everything = [torch.cat(part) for part in zip(*inputs.batches(range(10), 4), strict=True)]
    chosen = inputs[[7, 7, 0, 3]]
    assert extract.seen == extractions
    assert len(chosen) == 2 + with_image
    expected = stream(Extractor(), with_image=with_image).head_inputs(range(10))
    for part, whole, wanted in zip(chosen, everything, expected, strict=True):
        assert torch.equal(whole, wanted)
        assert torch.equal(part, wanted[[7, 7, 0, 3]])


def test_the_budget_counts_all_tiles():
    def held(budget):
        return HeadInputs(stream(Extractor()), CPU, budget).held is not None

    size = 10 * 4 * (3 + 3 * 8)
    assert held(size)
    assert not held(size - 1)
    assert held(None)
    assert memory_budget(CPU) == 2 * 1024**3


@pytest.mark.parametrize("budget", [0, 10**6])
def test_values_that_are_no_numbers_are_refused(budget):
    def broken(image):
        return (torch.full((len(image), 2), torch.inf),)

    with pytest.raises(NonFiniteValuesError, match="NaN or infinite"):
        HeadInputs(stream(broken), CPU, budget)[[0]]


def test_every_location_of_every_run_has_a_seed_of_its_own():
    seeds = [location_seed(seed, Location(row, col)) for seed in range(3) for row in range(4) for col in range(5)]
    assert len(set(seeds)) == len(seeds)
    assert location_seed(7, Location(1, 2)) == location_seed(7, Location(1, 2))
