"""Patch networks: every description is what the plain network makes of the patch around it, one patch at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge_ad.errors import InputError
from edge_ad.methods.parts.patch_network import PatchNetworks, extent_px

# Kernels, and whether positions are halved behind them, of arXiv 1911.02357
PLAIN = {
    17: ((6, False), (5, False), (5, False), (4, False)),
    33: ((5, True), (5, True), (2, False), (4, False)),
    65: ((5, True), (5, True), (5, True), (4, False), (1, False)),
}
TILE = (48, 64)


def networks(field, step, copies=2):
    torch.manual_seed(field)
    size = (TILE[0] // step, TILE[1] // step)
    return PatchNetworks(field, TILE, size, step, 7, width=6, copies=copies).double()


def describe(network, field, student, patch):
    """C numbers of ``patch`` (3, p, p) by one of the networks: nothing is dilated, pooling halves the patch."""
    convolutions = [module for module in network.net if isinstance(module, torch.nn.Conv2d)]
    values = patch[None]
    for index, (convolution, (kernel, pooled)) in enumerate(zip(convolutions, PLAIN[field], strict=True)):
        share = convolution.out_channels // network.copies
        mine = slice(student * share, (student + 1) * share)
        assert convolution.weight.shape[2:] == (kernel, kernel)
        values = F.conv2d(values, convolution.weight[mine], convolution.bias[mine])
        if index < len(convolutions) - 1:
            values = torch.where(values > 0, values, 0.005 * values)
        if pooled:
            values = F.max_pool2d(values, 2)
    assert values.shape[2:] == (1, 1)  # nothing of the patch is left
    return values.flatten()


@torch.no_grad()
@pytest.mark.parametrize("step", [2, 4, 8])
@pytest.mark.parametrize("field", PLAIN)
def test_every_position_is_its_patch(field, step):
    network = networks(field, step)
    image = torch.randn(3, *TILE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    described = network(image[None])[0]
    assert described.shape == (2, 7, TILE[0] // step, TILE[1] // step)
    margin = 40
    mirrored = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="reflect"))
    before = (extent_px(field) - step) // 2
    chosen = {0, 1, described.shape[2] // 2, described.shape[2] - 1}
    for row in chosen:
        for col in (0, 2, described.shape[3] - 1):
            top, left = (margin + step * place - before for place in (row, col))
            patch = mirrored[:, top : top + field, left : left + field]
            for student in range(2):
                expected = describe(network, field, student, patch)
                np.testing.assert_allclose(described[student, :, row, col].numpy(), expected.numpy(), atol=1e-9)


@pytest.mark.parametrize(("field", "extent"), [(17, 17), (33, 32), (65, 60)])
def test_a_description_depends_on_its_extent_around_its_cell(field, extent):
    """By the gradient; the middle of what it depends on is that of its 4 pixels, to half a pixel."""
    network = PatchNetworks(field, (96, 96), (24, 24), 4, 5, width=8, copies=1).double()
    image = torch.randn(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    seen = torch.zeros(96, 96, dtype=torch.bool)
    for _ in range(4):  # pooling passes on one value of four
        image.data.normal_()
        (gradient,) = torch.autograd.grad(network(image)[..., 11, 12].sum(), image)
        seen |= gradient[0].abs().sum(0) > 0
    rows, cols = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    assert rows.max() - rows.min() + 1 == extent == extent_px(field)
    assert abs((rows.min() + rows.max()) / 2 - (4 * 11 + 1.5)) <= 0.5
    assert abs((cols.min() + cols.max()) / 2 - (4 * 12 + 1.5)) <= 0.5


@pytest.mark.parametrize(("field", "parameters"), [(17, 2_996_480), (33, 1_616_000), (65, 1_386_624)])
def test_parameters_of_the_paper(field, parameters):
    with torch.device("meta"):
        network = PatchNetworks(field, (256, 256), (64, 64), 4, 128, width=128, copies=1)
    assert sum(value.numel() for value in network.parameters()) == parameters


def test_bad_input():
    with pytest.raises(InputError, match="fields: expected some of 17, 33, 65, but got 16"):
        PatchNetworks(16, TILE, (12, 16), 4, 5, width=8, copies=2)
    with pytest.raises(InputError, match="a tile of 28x64 is too small for patches of 65 pixels; use at least 29x29"):
        PatchNetworks(65, (28, 64), (7, 16), 4, 5, width=8, copies=2)
    with pytest.raises(InputError, match="fields: positions 32 pixels apart leave gaps between patches of 17"):
        PatchNetworks(17, (64, 64), (2, 2), 32, 5, width=8, copies=2)
    PatchNetworks(65, (29, 64), (7, 16), 4, 5, width=8, copies=2)
