import pytest

from edge_ad.errors import GeometryError, InputError, StrideTooLargeError, TileTooLargeError
from edge_ad.setups import SETUPS, Sharing, make_setup
from edge_ad.tiling import WHOLE, Location


@pytest.mark.parametrize(
    ("name", "image_px", "tiles", "models"),
    [
        ("sm256", 256, 1, 1),
        ("sm512", 512, 1, 1),
        ("st4", 512, 4, 1),
        ("st9", 512, 9, 1),
        ("ens4", 512, 4, 4),
        ("ens9", 512, 9, 9),
        ("st9+global", 512, 9, 2),
        ("ens4+global", 512, 4, 5),
    ],
)
def test_the_papers_setups(name, image_px, tiles, models):
    setup = SETUPS[name]
    assert setup.image_size == (image_px, image_px)
    assert (len(setup.grid), len(setup.model_locations)) == (tiles, models)


def test_every_tile_is_served_by_exactly_one_model():
    for setup in SETUPS.values():
        served = [tile for model in setup.model_locations for tile in setup.tiles_of(model)]
        assert sorted(served) == sorted(setup.locations)
        assert all(tile in setup.tiles_of(setup.model_of(tile)) for tile in setup.locations)


def test_parts_of_a_setup_can_be_replaced():
    setup = make_setup("ens9", image_size=(384, 640), tile_size=(128, 320), stride=(128, 160))
    assert setup.name == "custom"
    assert len(setup.model_locations) == 9
    assert make_setup("ens9", image_size=(512, 512)) is SETUPS["ens9"]
    assert make_setup("ens9", sharing=Sharing.ALL).model_locations == (Location(0, 0),)


def test_a_single_model_stays_one_when_its_image_size_changes():
    setup = make_setup("sm256", image_size=(192, 320))
    assert len(setup.grid) == 1
    assert setup.tile_size == (192, 320)


def test_a_global_model_is_one_more_of_the_whole_image():
    setup = make_setup("st9", global_model=True)
    assert setup is SETUPS["st9+global"]
    assert setup.model_locations == (Location(0, 0), WHOLE)
    assert (setup.locations[:-1], setup.locations[-1]) == (setup.grid.locations, WHOLE)
    assert (setup.model_of(WHOLE), setup.tiles_of(WHOLE)) == (WHOLE, (WHOLE,))
    with pytest.raises(GeometryError, match="a global model beside one tile would see the same"):
        make_setup("sm256", global_model=True)


def test_errors():
    with pytest.raises(InputError, match=r"unknown setup 'ens16'; known: sm256, sm512"):
        make_setup("ens16")
    with pytest.raises(TileTooLargeError):
        make_setup("ens9", image_size=(128, 512))
    with pytest.raises(StrideTooLargeError):
        make_setup("ens9", stride=(300, 128))
    for given in (
        {"name": "sm512", "image_size": (1024, 1024)},
        {"name": "sm512"},
        {"image_size": (256, 256), "tile_size": (256, 256)},
    ):
        with pytest.raises(GeometryError, match="has one tile, which has no stride; give a smaller tile size"):
            make_setup(**given, stride=(256, 256))
