"""What public implementations make of the same weights and inputs (`reference/make.py`), and what we make of them.

Tolerances are those of float32 sums in another order, of the size of what is compared, unless a test says otherwise.
Stored are the numbers of the references alone: their origin is named in each file.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_inputs import features, fill, pictures, sample, tiles_of_layers, weight

from edge_ad.methods import ast, create_model
from edge_ad.methods.cfa import CfaHead
from edge_ad.methods.efficient_ad import EfficientAdHead, Teacher, quantile_scale
from edge_ad.methods.parts.autoencoder import Autoencoder
from edge_ad.methods.parts.image_scaling import scale_image
from edge_ad.methods.parts.imitation import channel_statistics
from edge_ad.methods.parts.local_averages import LocalAverages
from edge_ad.methods.parts.pdn import PatchDescription, layers_of
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

TOLERANCE = 2e-5


def stored(method):
    return json.loads((Path(__file__).parent / "reference" / f"{method}.json").read_text())["values"]


def same(values, expected, tolerance=TOLERANCE):
    """Relative to the largest of what is expected."""
    np.testing.assert_allclose(sample(values), expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def fill_as(module, theirs, rename):
    """Weights of `fill` for a network with other names in another order: ``rename`` has theirs for each of ours."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            their_name = rename(name)
            tensor.copy_(weight(their_name, tensor, theirs.index(their_name)))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


class TestEfficientAd:
    """Without mirroring, as the reference: a frame of 16 pixels is blind."""

    theirs = stored("efficient_ad")

    @staticmethod
    def scaled(count, side):
        teacher = Teacher(layers_of("s"), mirror=False)
        return scale_image(pictures(count, side, side), teacher.mean, teacher.std)

    @pytest.mark.parametrize(("size", "name"), [("s", "pdn_small"), ("m", "pdn_medium")])
    def test_patch_description(self, size, name):
        network = PatchDescription(layers_of(size), mirror=False)
        fill(network.state_dict())
        same(network(self.scaled(1, 64)), self.theirs[name])

    def test_autoencoder(self):
        network = Autoencoder((256, 256), 384, (56, 56)).eval()
        fill(network.state_dict())
        same(network(self.scaled(1, 256)), self.theirs["autoencoder"])

    def test_range_of_channels(self):
        """Theirs is the mean of images' means, in two passes; ours is of all positions, in one."""
        mean, std = channel_statistics(self.teacher()(image)[0] for image in pictures(2, 64, 64).split(1))
        same(mean, self.theirs["teacher_mean"])
        same(std, self.theirs["teacher_std"])

    def test_maps_and_quantiles(self):
        """At 56 x 56 positions: theirs are then padded by four zeros, ours repeat what is beside them."""
        head = EfficientAdHead(layers_of("s"), (256, 256), mirror=False).eval()
        for network in (head.student, head.autoencoder):
            fill(network.state_dict())
        teacher = self.teacher()
        mean, std = channel_statistics(teacher(image)[0] for image in pictures(2, 64, 64).split(1))
        head.teacher_mean.copy_(mean)
        head.teacher_std.copy_(std)
        image = pictures(1, 256, 256)
        distances = head.distances(image, *teacher(image))
        low, gain = (values.flatten().double().numpy() for values in quantile_scale(distances))
        quantiles = np.stack([low, low + 0.1 / gain], axis=1).flatten()  # a map's 0.9 and 0.995, then the other's
        np.testing.assert_allclose(quantiles, self.theirs["quantiles"], rtol=1e-4)
        scaled = (distances - torch.from_numpy(low).view(1, 2, 1, 1)) * torch.from_numpy(gain).view(1, 2, 1, 1)
        same(scaled[:, 0], self.theirs["map_student"], 1e-4)
        same(scaled[:, 1], self.theirs["map_autoencoder"], 1e-3)  # its quantiles lie within three hundredths of it
        same(scaled.mean(1), self.theirs["map"], 1e-3)

    @staticmethod
    def teacher():
        teacher = Teacher(layers_of("s"), mirror=False)
        fill(teacher.network.state_dict())
        return teacher


class TestAst:
    """At the clamp of its published configuration, 1.9; ours is that of the two-dimensional experiments."""

    theirs = stored("ast")
    features = staticmethod(lambda: features(2, 20, 6, 6))

    @pytest.fixture
    def head(self, monkeypatch):
        monkeypatch.setattr(ast, "CLAMP", self.theirs["clamp"])
        head = ast.AstHead(20, (6, 6), (96, 96), teacher_width=8, student_width=16).eval()
        names = self.theirs["parameters"]
        fill_as(head.teacher, names["flow"], self.flow_name)
        for coupling, order in zip(head.teacher.couplings, self.theirs["orders"], strict=True):
            coupling.order.copy_(torch.tensor(order))
        fill_as(head.student, names["student"], self.student_name)
        first = head.student.layers[0].weight
        first.copy_(first.roll(-ast.ENCODING_CHANNELS, 1))  # theirs is given the encoding before the features
        return head

    @staticmethod
    def flow_name(ours):
        """couplings.1.by_first.layers.2.bias is module_list.5.s1.conv2.bias: two inputs, then a permutation each."""
        _, coupling, half, *rest = ours.split(".")
        prefix = f"module_list.{2 * int(coupling) + 3}.{({'by_first': 's1', 'by_second': 's2'})[half]}"
        return f"{prefix}.gamma" if rest == ["gain"] else f"{prefix}.conv{int(rest[1]) // 2 + 1}.{rest[2]}"

    @staticmethod
    def student_name(ours):
        """layers.3.layers.4.weight is res.1.bn2.weight; layers.0 and layers.6 are conv1 and conv2."""
        _, block, *rest = ours.split(".")
        if len(rest) == 1:
            return f"conv{1 if block == '0' else 2}.{rest[0]}"
        place = {"0": "l1", "1": "bn1", "3": "l2", "4": "bn2"}[rest[1]]
        return f"res.{int(block) - 2}.{place}.{rest[2]}"

    def test_encoding(self, head):
        same(head.encoding, self.theirs["encoding"])

    def test_flow(self, head):
        z, determinant = head.teacher(*head.placed(self.features()))
        same(z, self.theirs["z"])
        same(determinant, self.theirs["log_determinant"])

    def test_student_and_map(self, head):
        same(head.student(*head.placed(self.features())), self.theirs["student"])
        same(head.difference(self.features()).square().mean(1), self.theirs["map"])

    def test_losses(self, head):
        model = create_model("ast", (96, 96), backbone="resnet18", weights="none")
        inputs = (self.features(),)
        assert float(model.likelihood_loss(head, inputs)) == pytest.approx(self.theirs["loss_teacher"], rel=1e-5)
        assert float(model.loss(head, inputs)) == pytest.approx(self.theirs["loss_student"], rel=1e-5)


class TestCfa:
    theirs = stored("cfa")

    @staticmethod
    def embedding(number):
        """Of the three maps of a batch, averaged and joined."""
        maps = [features(2, 64 * 2**k, 8 >> k, 8 >> k, number + k) for k in range(3)]
        backbone = torch.nn.Module()
        backbone.forward = lambda _: maps
        return LocalAverages(backbone, (8, 8))(None)[0]

    @pytest.fixture
    def model(self):
        return create_model("cfa", (32, 32), backbone="resnet18", weights="none", dimensions=8)

    @pytest.fixture
    def head(self, model):
        head = CfaHead(448, 8, 64, (8, 8), (32, 32)).eval()
        fill(head.descriptor.state_dict())
        head.radius.fill_(0.9)
        model.prepare(head, [(self.embedding(number),) for number in (10, 20)])
        return head

    def test_centres(self, head):
        same(head.centres, self.theirs["centres"])

    def test_score_before_smoothing(self, head):
        distances = head.nearest(head.describe(self.embedding(30))).sqrt()
        same((-distances).softmax(2)[:, :, 0] * distances[:, :, 0], self.theirs["score"], 1e-4)  # roots of differences

    def test_map(self, head):
        anomaly_map, _ = head(self.embedding(30))
        same(anomaly_map, self.theirs["map"], 1e-4)

    def test_loss(self, model, head):
        assert float(model.loss(head, (self.embedding(30),))) == pytest.approx(self.theirs["loss"], rel=1e-5)


class TestSpade:
    """Fitted on 64ths: half precision holds them, and products and their sums are exact in float32, in any order.

    What differs: theirs adds 1e-6 to every difference, up to 2e-6 of the largest distance (1.7e-6 measured), and
    smooths by scipy's filter what it has upsampled, where ours is one product of matrices (5e-7 measured, with the
    former). Retrieval is the same to the last digit.

    Set aside in `make.py`: torch's `pairwise_distance` went along channels in 2020. It has since gone along the last
    axis, where the script compares rows of a map channel by channel. The script also leaves out up to 99 vectors of a
    gallery; of this one, none.
    """

    theirs = stored("spade")
    tolerance = 3e-6

    @pytest.fixture
    def head(self):
        train, _ = tiles_of_layers()
        *compared, deepest = train
        size = (224, 224)
        model = create_model("spade", size, backbone="resnet18", weights="none")
        model.channels = [values.shape[1] for values in compared]
        model.sizes = [tuple(values.shape[2:]) for values in compared]
        model.dimensions = deepest.shape[1]
        images = np.zeros((len(deepest), *size, 3), np.uint8)
        images += np.arange(len(images), dtype=np.uint8)[:, None, None, None]  # each holds its number

        def extract(image):
            return [values[image[:, 0, 0, 0].long()] for values in train]

        return model.fit(TileStream(images, TileGrid(size, size, size), (Location(0, 0),), extract, 3), seed=0)

    @pytest.fixture
    def asked(self):
        _, test = tiles_of_layers()
        return test

    def test_retrieval(self, head, asked):
        distances, nearest = head.retrieve(asked[-1].mean((2, 3)))
        assert nearest.tolist() == self.theirs["nearest"]
        same(distances, self.theirs["distances"], self.tolerance)

    def test_score_of_the_paper(self, head, asked):
        head.map_score = False
        _, score = head(*asked)
        same(score, self.theirs["scores"], self.tolerance)

    @pytest.mark.parametrize("layer", range(3))
    def test_correspondence(self, head, asked, layer):
        distances = head.correspondence(layer, asked[layer], torch.tensor(self.theirs["nearest"]))
        same(distances, self.theirs[f"layer{layer + 1}"], self.tolerance)

    def test_map(self, head, asked):
        anomaly_map, _ = head(*asked)
        same(anomaly_map, self.theirs["map"], self.tolerance)
