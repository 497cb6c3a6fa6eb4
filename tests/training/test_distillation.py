"""Teachers: the embedding against plain numpy, the same teacher after a kill, and what is refused."""

import copy
import dataclasses

import cv2
import numpy as np
import pytest
import torch

from edge_ad.errors import EmptyDataError, InputError, OutputWriteError, RunMismatchError, WrongWeightsError
from edge_ad.imaging import read_image, resize
from edge_ad.methods import create_model
from edge_ad.methods.efficient_ad import Teacher
from edge_ad.methods.parts import pdn
from edge_ad.methods.parts.backbone import Backbone
from edge_ad.methods.parts.patch_embedding import patch_embedding
from edge_ad.methods.parts.photographs import photograph_files
from edge_ad.progress import no_progress
from edge_ad.training import distillation
from edge_ad.training.distillation import Distillation, distil
from edge_ad.training.run_folder import load_tensors

SETTINGS = Distillation("tiny", backbone="resnet18", weights="none", steps=12, batch_size=2, image_px=64)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    layers = (pdn.Layer(4, 8, pooled=True), pdn.Layer(4, 12, pooled=True), pdn.Layer(3, 12), pdn.Layer(4, 10))
    monkeypatch.setitem(pdn.SIZES, "tiny", layers)
    monkeypatch.setattr(distillation, "STEPS_PER_SAVE", 5)
    torch.manual_seed(0)  # of the backbone, which is random here


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for index in range(4):
        small = rng.integers(0, 256, (6, 9, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(small, (90, 70), interpolation=cv2.INTER_CUBIC))
    return folder


def test_embedding_by_hand():
    """Neighbourhoods channel by channel, averaged over runs of numbers: 9 x 256 to 1024, 2 x 1024 to 4."""
    torch.manual_seed(3)
    first, second = torch.randn(2, 256, 4, 6), torch.randn(2, 512, 2, 3)
    got = patch_embedding([first, second], 4).numpy()
    assert got.shape == (2, 4, 4, 6)

    def pooled(vector, count):
        edges = [(i * len(vector) // count, -(-(i + 1) * len(vector) // count)) for i in range(count)]
        return np.array([vector[a:b].mean() for a, b in edges])

    def around(layer, row, col):
        padded = np.pad(layer.numpy(), ((0, 0), (1, 1), (1, 1)))
        return pooled(padded[:, row : row + 3, col : col + 3].reshape(-1), 1024)

    # Row 1, column 1 of the first lies a quarter of the way from position 0 to 1 of the second, in both directions
    corners = {(r, c): around(second[1], r, c) for r in (0, 1) for c in (0, 1)}
    deep = sum((0.75 if r == 0 else 0.25) * (0.75 if c == 0 else 0.25) * value for (r, c), value in corners.items())
    expected = pooled(np.concatenate([around(first[1], 1, 1), deep]), 4)
    np.testing.assert_allclose(got[1, :, 1, 1], expected, atol=1e-5)


@pytest.mark.parametrize(("at", "goes_on"), [(2, 1), (8, 6)])
def test_a_killed_distillation_goes_on_and_ends_the_same(at, goes_on, photographs, tmp_path):
    """From where it was last saved; the backbone is not measured again, which takes hours of many photographs."""
    told = []
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    torch.manual_seed(0)
    loss = distil(photographs, whole, SETTINGS, progress=lambda done, total, what: told.append(what))
    assert told[-1] == f"distilling, loss {loss:.4f}"
    assert len({what.partition(",")[0] for what in told}) == 2  # a bar each on a terminal

    def kill(done, total, what):
        if what.startswith("distilling") and done == at:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        distil(photographs, killed, SETTINGS, progress=kill)
    assert not killed.exists()
    steps = []
    torch.manual_seed(0)
    distil(photographs, killed, SETTINGS, progress=lambda done, total, what: steps.append((what[:10], done)))
    assert steps == [("distilling", step) for step in range(goes_on, 13)]
    expected, got = load_tensors(whole), load_tensors(killed)
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.safetensors", "whole.safetensors"]
    model = create_model("efficient_ad", (64, 64), size="tiny", weights=str(whole))
    assert torch.equal(model.teacher.network.net[0].weight, expected["0.weight"])


def test_targets_are_normalised_over_the_photographs(photographs):
    files = photograph_files(photographs)
    teacher = Teacher(pdn.layers_of("tiny"), mirror=True)
    student = distillation._Student(teacher, Backbone("resnet18", weights="none"), SETTINGS, files, torch.device("cpu"))
    student.measure(no_progress)
    side = 2 * SETTINGS.image_px
    images = np.stack([resize(read_image(file), (side, side)) for file in files])
    targets = (student.target(torch.from_numpy(images)) - student.mean) / student.std
    assert targets.shape == (4, 10, 16, 16)
    assert targets.mean((0, 2, 3)).abs().max() < 1e-3
    assert (targets.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("grey", [False, True])
def test_a_steps_loss_is_that_of_the_normalised_targets(grey, photographs, monkeypatch):
    """In numpy, of what both networks were shown: the same photographs, grey for both of them or for neither."""
    assert distillation.GREY_SHARE == 0.1  # the paper's
    monkeypatch.setattr(distillation, "GREY_SHARE", float(grey))
    files = photograph_files(photographs)
    teacher = Teacher(pdn.layers_of("tiny"), mirror=True)
    student = distillation._Student(teacher, Backbone("resnet18", weights="none"), SETTINGS, files, torch.device("cpu"))
    student.measure(no_progress)
    untaught, shown = copy.deepcopy(teacher), []
    for network in (student.source, teacher):
        network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    loss = student.learn(0)
    large, small = shown

    images = [read_image(file) for file in files]
    sides = (SETTINGS.image_px, 2 * SETTINGS.image_px)
    if grey:
        kept = [cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for image in images]
    else:
        kept = images
    numbers = []
    for given, px in zip((small, large), sides, strict=True):
        candidates = np.stack([resize(image, (px, px)) for image in kept]).astype(int)
        off = np.abs(given.numpy()[:, None] - candidates).max((2, 3, 4))  # (batch, photographs)
        assert (off.min(1) <= 1).all()  # of 255, by which ways to grey differ
        numbers.append(off.argmin(1).tolist())
    assert numbers[0] == numbers[1]

    everything = student.target(torch.from_numpy(np.stack([resize(image, (sides[1], sides[1])) for image in images])))
    mean, std = (of(everything.numpy(), axis=(0, 2, 3), keepdims=True) for of in (np.mean, np.std))
    with torch.no_grad():
        described = untaught(small)[0].numpy()
    expected = np.mean(((student.target(large).numpy() - mean) / std - described) ** 2)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_loss_falls(photographs, tmp_path):
    short = Distillation("tiny", "resnet18", weights="none", steps=1, batch_size=4, learning_rate=3e-3, image_px=64)
    long = Distillation("tiny", "resnet18", weights="none", steps=60, batch_size=4, learning_rate=3e-3, image_px=64)
    losses = []
    for settings in (short, long):
        torch.manual_seed(0)
        losses.append(distil(photographs, tmp_path / f"{settings.steps}.safetensors", settings))
    assert losses[1] < 0.9 * losses[0]


def test_bf16_is_for_products_alone(photographs, tmp_path):
    """Other roundings, the same road: what is stored stays float32 and the loss follows float32's."""
    losses, weights = [], []
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, bf16=True)):
        torch.manual_seed(0)
        output = tmp_path / f"{settings.bf16}.safetensors"
        losses.append(distil(photographs, output, settings))
        weights.append(load_tensors(output))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {value.dtype for value in weights[1].values()} == {torch.float32}
    assert not torch.equal(weights[0]["0.weight"], weights[1]["0.weight"])


def test_other_settings_or_photographs_are_not_mixed(photographs, tmp_path):
    output = tmp_path / "teacher.safetensors"

    def kill(done, total, what):
        if what.startswith("distilling") and done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(photographs, output, SETTINGS, progress=kill)
    other = Distillation("tiny", backbone="resnet18", weights="none", steps=13, batch_size=2, image_px=64)
    with pytest.raises(RunMismatchError, match=r"begun with other settings \(steps: 12 there, 13 here\)"):
        distil(photographs, output, other)
    state = tmp_path / "teacher.safetensors.state"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(WrongWeightsError, match=r"is damaged: .*; delete it to begin anew"):
        distil(photographs, output, SETTINGS)


def test_an_output_that_cannot_be_written_is_told_before_the_work(photographs, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    told = []
    for output in (tmp_path / "file" / "teacher.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(OutputWriteError, match=f"cannot write {output}: "):
            distil(photographs, output, SETTINGS, progress=lambda *of: told.append(of))
    assert told == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]


def test_bad_input(photographs, tmp_path):
    with pytest.raises(InputError, match=r"teacher\.pth: a teacher is written as \.safetensors"):
        distil(photographs, tmp_path / "teacher.pth", SETTINGS)
    with pytest.raises(EmptyDataError):
        distil(tmp_path, tmp_path / "teacher.safetensors", SETTINGS)
    with pytest.raises(InputError, match="expected positive numbers, but got steps 0"):
        Distillation(steps=0)
