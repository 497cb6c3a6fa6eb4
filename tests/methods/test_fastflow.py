"""FastFlow's flow, map, score and loss against autograd's Jacobian and plain numpy in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge_ad.errors import BackboneError
from edge_ad.methods import create_model
from edge_ad.methods.fastflow import Fastflow, LayerNorm
from edge_ad.methods.parts.couplings import FLOW_STEPS, Coupling, Flow, FlowGraph

TILE = (32, 48)
CHANNELS = (64, 128, 256)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("fastflow", TILE, backbone="resnet18", weights="none")


@pytest.fixture(scope="module")
def head(model):
    torch.manual_seed(1)
    return spread(model.new_head().eval(), by=0.02)


@pytest.fixture(scope="module")
def features(model):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *TILE, 3), np.uint8))
    return tuple(model.extract(image))


def spread(module, by=0.1):
    """Every parameter moved from where it starts, so that each of them counts."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * torch.randn_like(parameter)
    return module


def convolve(conv, values):
    """Zero-padded correlation by numpy, one tap at a time."""
    weight, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()
    reach = weight.shape[2] // 2
    padded = np.pad(values, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    height, width = values.shape[2:]
    total = np.zeros((len(values), len(weight), height, width)) + bias[:, None, None]
    for row in range(weight.shape[2]):
        for col in range(weight.shape[3]):
            window = padded[:, :, row : row + height, col : col + width]
            total += np.einsum("oc,nchw->nohw", weight[:, :, row, col], window)
    return total


def transform(norm, flow, values):
    """z and log-determinant as METHODS and FrEIA write them, in float64."""

    def number(parameter):
        return parameter.detach().double().numpy()

    x = values.double().numpy()
    mean, std = x.mean((1, 2, 3), keepdims=True), x.std((1, 2, 3), keepdims=True)
    x = (x - mean) / std * number(norm.scale) - number(norm.shift)
    total = np.zeros(len(x))
    for step in flow.steps:
        half = x.shape[1] - x.shape[1] // 2
        a = 0.1 * convolve(step.subnet[2], np.maximum(convolve(step.subnet[0], x[:, :half]), 0))
        log_scale, shift = 2 * np.tanh(a[:, : x.shape[1] - half]), -a[:, x.shape[1] - half :]
        x = np.concatenate([x[:, :half], x[:, half:] * np.exp(log_scale) + shift], 1)
        scale = 0.1 * np.log1p(np.exp(0.5 * number(step.raw_scale))) / 0.5
        x = (x * scale - number(step.offset))[:, step.order.numpy()]
        total += log_scale.sum((1, 2, 3)) + x.shape[2] * x.shape[3] * np.log(scale).sum()
    return x, total


@pytest.fixture(scope="module")
def transformed(head, features):
    return [transform(*parts) for parts in zip(head.norms, head.flows, features, strict=True)]


@torch.no_grad()
def test_flows(head, features, transformed):
    for (z, log_determinant), (expected_z, expected) in zip(head.latents(features), transformed, strict=True):
        np.testing.assert_allclose(z.numpy(), expected_z, rtol=1e-5, atol=1e-5)
        # Of some 49152 scales of about 1, each rounded by up to 6e-8, the logarithms are summed
        np.testing.assert_allclose(log_determinant.numpy(), expected, atol=3e-3)


@torch.no_grad()
def test_map_and_score(head, features, transformed):
    likelihoods = [torch.from_numpy(np.exp(-0.5 * (z**2).mean(1, keepdims=True))) for z, _ in transformed]
    layers = [F.interpolate(part, size=TILE, mode="bilinear", align_corners=False).numpy() for part in likelihoods]
    expected = -np.log(np.mean(layers, axis=0))
    anomaly_map, score = head(*features)
    assert anomaly_map.shape == (3, 1, *TILE)
    np.testing.assert_allclose(anomaly_map.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2, 3)), rtol=1e-5)


@torch.no_grad()
def test_engines_get_the_same_function(model, head, features):
    for found, expected in zip(model.for_engines(head)(*features), head(*features), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("channels", [4, 5])  # 5: the halves differ
def test_a_graph_of_a_flow(channels):
    torch.manual_seed(8)
    flow = spread(Flow(channels, conv3x3_only=False)).double()
    values = torch.randn(2, channels, 4, 3, dtype=torch.float64)
    z, _ = flow(values)
    torch.testing.assert_close(FlowGraph(flow).double()(values), (z * z).mean(1, keepdim=True), rtol=1e-5, atol=0)


@torch.no_grad()
def test_loss(model, head, features, transformed):
    expected = sum((0.5 * (z**2).sum((1, 2, 3)) - log_determinant).mean() for z, log_determinant in transformed)
    assert model.loss(head, features).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("conv3x3_only", [True, False])
@pytest.mark.parametrize("channels", [4, 5])  # 5: the halves differ
def test_the_log_determinant_is_that_of_autograds_jacobian(channels, conv3x3_only):
    torch.manual_seed(2)
    flow = spread(Flow(channels, conv3x3_only)).double()
    values = torch.randn(2, channels, 2, 3, dtype=torch.float64)
    for index, log_determinant in enumerate(flow(values)[1]):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x)[0], values[index : index + 1])
        _, expected = torch.linalg.slogdet(jacobian.reshape(channels * 6, channels * 6))
        assert log_determinant.item() == pytest.approx(expected.item(), rel=1e-9)
        assert abs(expected.item()) > 0.1


@torch.no_grad()
def test_a_step_can_be_undone():
    torch.manual_seed(3)
    step = spread(Coupling(5, kernel=3)).double()
    values = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    result = torch.empty_like(values)
    result[:, step.order] = step(values)[0]
    result = (result + step.offset) / step.scale()
    a = 0.1 * step.subnet(result[:, :3])
    moved = (result[:, 3:] + a[:, 2:]) * torch.exp(-2 * torch.tanh(a[:, :2]))
    torch.testing.assert_close(torch.cat([result[:, :3], moved], 1), values)


@torch.no_grad()
def test_the_normalisation_is_torchs():
    torch.manual_seed(4)
    norm, values = spread(LayerNorm(5, (3, 7))), 3 + 2 * torch.randn(2, 5, 3, 7)
    expected = F.layer_norm(values, (5, 3, 7), norm.scale, -norm.shift)
    torch.testing.assert_close(norm(values), expected, rtol=1e-5, atol=1e-5)
    assert norm(torch.full((1, 5, 3, 7), 3.0)).abs().max() < 1  # no variance: nothing to divide by


@torch.no_grad()
def test_the_map_orders_what_is_far_from_normal(model, features):
    torch.manual_seed(1)
    head, scores = model.new_head().eval(), []
    for scale in (7, 8, 1000):
        for flow in head.flows:
            flow.steps[-1].raw_scale.fill_(10 * scale)
        scores.append(head(*features)[1])
    assert (1 - torch.exp(-scores[0]) == 1).all()  # where it has run out of digits
    assert (scores[1] > scores[0] + 1).all()
    assert torch.isfinite(scores[2]).all()


def test_a_new_flow_scales_nothing_and_permutes():
    torch.manual_seed(5)
    flow = Flow(64, conv3x3_only=True)
    assert len(flow.steps) == FLOW_STEPS == 8
    orders = [tuple(step.order.tolist()) for step in flow.steps]
    assert len(set(orders)) == 8
    assert all(sorted(order) == list(range(64)) for order in orders)
    for step in flow.steps:
        torch.testing.assert_close(step.scale(), torch.ones(64, 1, 1))
        assert not step.offset.any()


def test_permutations_belong_to_the_state(model):
    torch.manual_seed(6)
    one = model.new_head()
    torch.manual_seed(7)
    other = model.new_head()
    assert not torch.equal(one.flows[0].steps[0].order, other.flows[0].steps[0].order)
    again = model.head_from_state(one.state_dict())
    assert torch.equal(again.flows[0].steps[0].order, one.flows[0].steps[0].order)


@pytest.mark.parametrize(("conv3x3_only", "expected"), [(True, 5_574_912), (False, 3_510_528)])
def test_the_published_sizes(conv3x3_only, expected):
    """At 256 px; with ResNet18 to layer3 and permutations as matrices the first is 9.733 M, the tiled paper's 9.7 M."""
    model = create_model("fastflow", (256, 256), backbone="resnet18", weights="none", conv3x3_only=conv3x3_only)
    count = sum(parameter.numel() for parameter in model.new_head().parameters())
    assert count == expected
    if conv3x3_only:
        matrices = 2 * FLOW_STEPS * sum(channels**2 for channels in CHANNELS)
        assert round((count + matrices + 2_782_784) / 1e6, 1) == 9.7


def test_kernels():
    for conv3x3_only, expected in ((True, [3] * 8), (False, [3, 1] * 4)):
        steps = Flow(4, conv3x3_only).steps
        assert [step.subnet[0].kernel_size[0] for step in steps] == expected
        assert [step.subnet[2].kernel_size[0] for step in steps] == expected
    model = create_model("fastflow", TILE, backbone="resnet18", weights="none", conv3x3_only=False)
    assert model.config["conv3x3_only"] is False


def test_hyper_parameters():
    for schedule in Fastflow.schedules.values():
        optimiser = schedule.optimiser([torch.nn.Parameter(torch.zeros(1))], lr=schedule.learning_rate)
        assert type(optimiser) is torch.optim.Adam
        settings = optimiser.param_groups[0]
        assert (settings["lr"], settings["betas"], settings["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-5)
        assert (schedule.batch_size, schedule.keep_best) == (32, False)
    assert Fastflow.schedules["paper"].steps == 200
    assert Fastflow.schedules["original"].epochs == 500


def test_errors():
    with pytest.raises(BackboneError, match="tile size 40x32 is no multiple of the stride 16"):
        create_model("fastflow", (40, 32), backbone="resnet18", weights="none")
