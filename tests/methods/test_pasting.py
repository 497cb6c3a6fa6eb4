"""CutPaste's pastes: pixel by pixel against loops, by hand, and what holds for every one of them."""

import math

import numpy as np
import pytest
import torch

from edge_ad.methods.parts.pasting import Paste, Pastes, draw_pastes, paste, patch_edges

TILE = (96, 160)
KINDS = torch.tensor([[[0, 1, 2], [2, 1, 0]]]).repeat(40, 1, 1)


def one(**given):
    """One paste on a tile of one patch: by default 2 x 3 pixels around (1.5, 2) from around (5.5, 6)."""
    values = {
        "kind": Paste.PATCH, "height": 2.0, "width": 3.0, "angle": 0.0, "target_row": 1.5, "target_col": 2.0,
        "source_row": 5.5, "source_col": 6.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0,
    }  # fmt: skip
    return Pastes(**{key: torch.tensor(value).reshape(1, 1, 1) for key, value in (values | given).items()})


@pytest.fixture
def tiles():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (len(KINDS), *TILE, 3), np.uint8))


def test_a_rectangle_is_copied(tiles):
    small = tiles[:1, :8, :10]
    pasted, kinds = paste(small, one())
    expected = small.clone()
    expected[0, 1:3, 1:4] = small[0, 5:7, 5:8]
    assert torch.equal(pasted, expected)
    where = torch.zeros(1, 8, 10, dtype=torch.int64)
    where[0, 1:3, 1:4] = Paste.PATCH
    assert torch.equal(kinds, where)
    assert torch.equal(small, tiles[:1, :8, :10])  # not changed itself


def test_nothing_is_pasted_where_nothing_is_to_be(tiles):
    pasted, kinds = paste(tiles[:1], one(kind=Paste.NONE))
    assert torch.equal(pasted, tiles[:1])
    assert not kinds.any()


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        ({"brightness": 1.1}, (110, 55, 22)),
        # Grey of (100, 50, 20) is 0.299 100 + 0.587 50 + 0.114 20 = 61.53, which is the tile's mean too
        ({"contrast": 0.9}, (96, 51, 24)),
        ({"saturation": 1.1}, (104, 49, 16)),
    ],
)
def test_jitter_by_hand(factor, expected):
    tile = torch.tensor([100, 50, 20], dtype=torch.uint8).expand(1, 8, 10, 3).clone()
    pasted, _ = paste(tile, one(**factor))
    assert pasted[0, 1, 1].tolist() == list(expected)
    assert pasted[0, 0, 0].tolist() == [100, 50, 20]


@torch.no_grad()
def test_a_turned_piece_against_loops(tiles):
    angle, (row, col), (source_row, source_col) = 0.5, (30.0, 40.5), (60.5, 100.0)
    pasted, kinds = paste(
        tiles[:1],
        one(kind=Paste.SCAR, height=20.0, width=7.0, angle=angle, target_row=row, target_col=col,
            source_row=source_row, source_col=source_col),
    )  # fmt: skip
    expected, where = tiles[0].numpy().copy(), np.zeros(TILE, int)
    for y, x in np.ndindex(*TILE):
        u = (x - col) * math.cos(angle) + (y - row) * math.sin(angle)
        v = (y - row) * math.cos(angle) - (x - col) * math.sin(angle)
        if abs(u) < 3.5 and abs(v) < 10:
            expected[y, x] = tiles[0, round(source_row + v), round(source_col + u)]
            where[y, x] = Paste.SCAR
    assert 130 < (where > 0).sum() < 150  # 20 x 7
    np.testing.assert_array_equal(kinds[0].numpy(), where)
    np.testing.assert_array_equal(pasted[0].numpy(), expected)


def test_what_is_pasted_lies_in_its_patch_and_nothing_else_changes(tiles):
    torch.manual_seed(0)
    pastes = draw_pastes(KINDS, TILE)
    pasted, kinds = paste(tiles, pastes)
    assert torch.equal(pasted[kinds == Paste.NONE], tiles[kinds == Paste.NONE])
    rows, cols = patch_edges(TILE[0], 2), patch_edges(TILE[1], 3)
    for r, c in np.ndindex(2, 3):
        patch = kinds[:, rows[r] : rows[r + 1], cols[c] : cols[c + 1]]
        area = (patch > 0).sum((1, 2)).numpy()
        kind = KINDS[0, r, c].item()
        assert set(patch.unique().tolist()) <= {Paste.NONE, kind}
        size = patch.shape[1] * patch.shape[2]
        if kind == Paste.NONE:
            assert not area.any()
        elif kind == Paste.PATCH:  # sides are rounded to pixels
            assert area.min() > 0.015 * size
            assert area.max() < 0.16 * size
            assert np.ptp(area) > 0.05 * size
        else:
            assert area.min() >= 2 * 10 - 8
            assert area.max() <= 16 * 25 + 41
    # Inside the tile, of whole patches' pieces all: no piece was cut off
    whole = kinds == Paste.PATCH
    assert whole.sum() == (pastes.height * pastes.width)[KINDS == Paste.PATCH].sum()


def test_pieces_come_from_inside_the_tile():
    torch.manual_seed(0)
    pastes = draw_pastes(torch.randint(0, 3, (200, 2, 3)), TILE)
    for middle, extent, size in (
        (pastes.source_row, pastes.height, TILE[0]),
        (pastes.source_col, pastes.width, TILE[1]),
    ):
        assert (middle - (extent - 1) / 2).min() >= 0
        assert (middle + (extent - 1) / 2).max() <= size - 1
    scar = pastes.kind == Paste.SCAR
    assert pastes.angle[scar].abs().max() <= math.pi / 4
    assert pastes.angle[scar].std() > 0.3
    assert not pastes.angle[~scar].any()
    aspect = (pastes.height / pastes.width)[pastes.kind == Paste.PATCH]
    assert 0.25 < aspect.min() < 0.5
    assert 2 < aspect.max() < 4
    for factor in (pastes.brightness, pastes.contrast, pastes.saturation):
        assert 0.9 <= factor.min() < 0.92
        assert 1.08 < factor.max() <= 1.1


def test_pastes_are_drawn_by_seed(tiles):
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(paste(tiles[:2], draw_pastes(KINDS[:2], TILE))[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_patches_too_small_for_a_scar_cut_it_off():
    torch.manual_seed(0)
    tiles = torch.zeros(50, 16, 24, 3, dtype=torch.uint8)
    _, kinds = paste(tiles, draw_pastes(torch.tensor([[[2, 0]]]).repeat(50, 1, 1), (16, 24)))
    assert kinds[:, :, :12].flatten(1).any(1).all()
    assert not kinds[:, :, 12:].any()


def test_edges_of_patches_are_where_pixels_change_patch():
    for size, count in ((96, 2), (160, 3), (100, 7), (5, 5)):
        edges = patch_edges(size, count)
        numbers = np.arange(size) * count // size
        assert edges == [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), size]
