"""The training loop on a head of one number, whose every step can be computed by hand."""

import functools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from edge_ad.errors import BatchTooLargeError, DivergedError, InputError, TooFewImagesError
from edge_ad.methods import METHODS, gradient, method_class
from edge_ad.methods.gradient import GradientModel, Schedule
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

GRID = TileGrid((4, 8), (4, 4), (4, 4))
HERE = (Location(0, 1),)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.rand(1))


class Mean(GradientModel):
    """Its loss is (value - brightness)^2: the least is the mean brightness of the tiles trained on."""

    name = "mean"
    minimum_tiles = 1
    feature_names = ("brightness",)
    schedules = {  # noqa: RUF012
        "paper": Schedule(torch.optim.SGD, learning_rate=0.25, batch_size=4, steps=10),
        "original": Schedule(functools.partial(torch.optim.SGD), 0.25, batch_size=4, epochs=3, keep_best=True),
    }

    def __init__(self, tile_size, **training):
        super().__init__(tile_size, {"kept": 1}, **training)
        self.batches = []

    def new_head(self):
        return Head()

    def loss(self, head, inputs):
        if head.training:
            self.batches.append(inputs[0].tolist())
        return ((head.value - inputs[0]) ** 2).mean()


def stream(values, locations=HERE):
    """Tiles of one brightness each; in images to the left of it, everything is 255."""
    images = np.full((len(values), 4, 8, 3), 255, np.uint8)
    images[:, :, 4:] = np.array(values, np.uint8)[:, None, None, None]
    return TileStream(images, GRID, locations, lambda image: (image.float().mean((1, 2, 3)) / 100,), 3)


@pytest.fixture
def validates_after_every_epoch(monkeypatch):
    monkeypatch.setattr(gradient, "STEPS_PER_VALIDATION", 1)


VALUES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


def test_every_step_is_the_optimisers():
    model = Mean((4, 4))
    head = model.fit(stream(VALUES), seed=0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        value = float(torch.rand(1))
    for batch in model.batches:
        value -= 0.25 * 2 * (value - np.mean(batch))
    assert head.value.item() == pytest.approx(value, rel=1e-5)
    assert not head.training


@pytest.mark.parametrize(("decay_at", "whole"), [(0.5, 5), (0.75, 7), (1.0, 10)])
def test_the_learning_rate_falls_to_a_tenth_after_its_part_of_the_steps(decay_at, whole):
    class Decaying(Mean):
        schedules = {"paper": replace(Mean.schedules["paper"], decay_at=decay_at)}  # noqa: RUF012

    model = Decaying((4, 4))
    head = model.fit(stream(VALUES), seed=0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        value = float(torch.rand(1))
    for rate, batch in zip([0.25] * whole + [0.025] * (10 - whole), model.batches, strict=True):
        value -= rate * 2 * (value - np.mean(batch))
    assert head.value.item() == pytest.approx(value, rel=1e-5)


def test_learning_rates_fall_where_a_methods_description_says_so():
    """EfficientAD at 66 500 of 70 000 steps, as in its paper; the others in the last quarter; nowhere else."""
    expected = {
        ("stfpm", "paper"): 0.75,  # this and the next two: docs/methods.md
        ("reduced_student", "paper"): 0.75,
        ("mixed_teacher", "paper"): 0.75,
        ("cutpaste", "paper"): 0.75,  # for the cosine of its paper
        ("cutpaste", "original"): 0.75,
        ("efficient_ad", "original"): 66_500 / 70_000,
    }
    trained = [kind for kind in map(method_class, METHODS) if issubclass(kind, GradientModel)]
    found = {(kind.name, name): each.decay_at for kind in trained for name, each in kind.schedules.items()}
    assert set(expected) <= set(found)
    assert found == dict.fromkeys(found, 1.0) | expected


def test_batches_are_whole_and_an_epoch_sees_no_tile_twice():
    model = Mean((4, 4))
    model.fit(stream(VALUES), seed=0)
    assert [len(batch) for batch in model.batches] == [4] * 10
    for first, second in zip(model.batches[::2], model.batches[1::2], strict=True):
        assert len({*first, *second}) == 8
    assert model.batches[0] != model.batches[2]


def test_the_seed_alone_decides():
    def fit(seed, state):
        torch.manual_seed(state)
        model = Mean((4, 4))
        return model.fit(stream(VALUES), seed).value.item(), model.batches, float(torch.rand(1))

    (value, batches, after), again, other = fit(1, 5), fit(1, 6), fit(2, 5)
    assert (value, batches) == again[:2]
    assert (value, batches) != other[:2]
    torch.manual_seed(5)
    assert after == float(torch.rand(1))  # and it leaves torch's generator alone


def test_steps_and_batch_size_replace_the_schedules():
    model = Mean((4, 4), schedule="original", steps=7, batch_size=2, learning_rate=0.5)
    assert model.schedule == replace(Mean.schedules["original"], steps=7, batch_size=2, learning_rate=0.5)
    expected = {"schedule": "original", "steps": 7, "batch_size": 2, "learning_rate": 0.5}
    assert model.config == {"kept": 1, **expected}
    model.fit(stream(VALUES), seed=0)
    assert [len(batch) for batch in model.batches] == [2] * 7
    assert Mean((4, 4), **expected).config == model.config


def test_a_schedule_can_be_told_to_keep_its_best_state_or_its_last():
    for schedule, keep_best in (("paper", True), ("original", False)):
        model = Mean((4, 4), schedule=schedule, keep_best=keep_best)
        assert model.schedule == replace(Mean.schedules[schedule], keep_best=keep_best)
        assert model.config["keep_best"] is keep_best
        model.fit(stream(VALUES), seed=0)
        assert bool(model.losses[0].validation) is keep_best
    assert "keep_best" not in Mean((4, 4)).config


def test_epochs_are_passes_over_what_is_not_held_out():
    model = Mean((4, 4), schedule="original")
    told = []
    model.fit(stream(VALUES), 0, lambda done, total, what: told.append((done, total, what)))
    assert told == [(step, 6, "training") for step in range(1, 7)]  # 10 images, 2 held out: 2 batches of 4, 3 times
    assert len({value for batch in model.batches for value in batch}) == 8


def test_images_are_held_out_with_all_their_tiles():
    model = Mean((4, 4), schedule="original", batch_size=1, steps=64)
    tiles = stream(VALUES, (HERE[0], HERE[0]))  # two tiles of each image
    training, validation = model._split(tiles, seed=0)
    assert len(training) == 16
    assert len(validation) == 4
    assert not {n % 10 for n in training} & {n % 10 for n in validation}
    assert sorted(training + validation) == list(range(20))


@pytest.mark.usefixtures("validates_after_every_epoch")
def test_the_state_of_lowest_validation_loss_is_kept():
    class Drifting(Mean):
        """Moves by one per step, whatever it sees: through the validation tiles' mean and beyond."""

        def loss(self, head, inputs):
            return -head.value.sum() * 4 if head.training else super().loss(head, inputs)

    model = Drifting((4, 4), schedule="original", steps=30, batch_size=8)  # an epoch is a step of +1
    head = model.fit(stream([200] * 10), seed=0)
    assert abs(head.value.item() - 2.0) <= 0.5 + 1e-5


@pytest.mark.usefixtures("validates_after_every_epoch")
def test_losses_are_those_of_the_steps_and_the_step_kept_is_told():
    model = Mean((4, 4), schedule="original")
    head = model.fit(stream(VALUES), seed=0)
    (losses,) = model.losses
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        value = float(torch.rand(1))
    expected = []
    for batch in model.batches:
        expected.append(np.mean((value - np.array(batch)) ** 2))
        value -= 0.25 * 2 * (value - np.mean(batch))
    assert losses.stage == "training"
    assert losses.training == pytest.approx(expected, rel=1e-4)
    assert [step for step, _ in losses.validation] == [2, 4, 6]  # after every epoch
    assert losses.kept_step == min(losses.validation, key=lambda pair: pair[1])[0]
    _, held_out = model._split(stream(VALUES), seed=0)
    lowest = np.mean([(head.value.item() - VALUES[n] / 100) ** 2 for n in held_out])
    assert min(loss for _, loss in losses.validation) == pytest.approx(lowest, rel=1e-4)
    plain = Mean((4, 4))
    plain.fit(stream(VALUES), seed=0)
    assert (plain.losses[0].validation, plain.losses[0].kept_step) == ((), 10)


def test_bf16_is_for_products_of_training_steps_alone():
    class Product(Mean):
        """(value x brightness - 1)^2 by a matrix product: its dtype is seen."""

        seen = ()

        def loss(self, head, inputs):
            product = inputs[0][:, None] @ head.value[None]
            self.seen = (*self.seen, (head.training, product.dtype))
            return ((product.float() - 1) ** 2).mean()

    for bf16, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        model = Product((4, 4), schedule="original", bf16=bf16)
        head = model.fit(stream(VALUES), seed=0)
        assert {dtype for training, dtype in model.seen if training} == {dtype}
        assert {dtype for training, dtype in model.seen if not training} == {torch.float32}
        assert head.value.dtype == torch.float32
        assert model.config.get("bf16", False) is bf16


def test_divergence_stops_at_the_last_good_state():
    class Diverging(Mean):
        steps_done = 0

        def loss(self, head, inputs):
            self.steps_done += 1
            return head.value.sum() if self.steps_done < 5 else head.value.sum() * torch.nan

    with pytest.raises(
        DivergedError, match=r"tile r00_c01: training diverged at step 5: .*; train with a smaller"
    ) as info:
        Diverging((4, 4)).fit(stream(VALUES), seed=0)
    torch.manual_seed(0)
    # The loss of step 4 was the last finite one; its update has not been seen to be good
    assert float(info.value.state["value"]) == pytest.approx(float(torch.rand(1)) - 3 * 0.25)


def test_losses_may_be_looked_at_less_often(monkeypatch):
    """The same training; divergence is seen later, told of the step it was at, and the last look's state is kept."""

    class Diverging(Mean):
        steps_done, at = 0, 8

        def loss(self, head, inputs):
            self.steps_done += 1
            return head.value.sum() * (torch.nan if self.steps_done == self.at else 1)

    def fitted(at):
        model = Diverging((4, 4), steps=11)
        model.at = at
        return model, model.fit(stream(VALUES), seed=0)

    every, head = fitted(None)
    monkeypatch.setattr(gradient, "STEPS_PER_LOOK", {"cpu": 3})
    seldom, same = fitted(None)
    assert torch.equal(head.value, same.value)
    assert every.losses == seldom.losses
    assert len(seldom.losses[0].training) == 11
    with pytest.raises(DivergedError, match="diverged at step 8:") as info:
        fitted(8)
    torch.manual_seed(0)
    assert float(info.value.state["value"]) == pytest.approx(float(torch.rand(1)) - 5 * 0.25)  # as step 6 found it


def test_the_last_update_is_looked_at_too():
    class Overshooting(Mean):
        def loss(self, head, inputs):
            return head.value.sum() ** 2 * 1e38

    with pytest.raises(DivergedError, match="diverged at step 1:"):
        Overshooting((4, 4), steps=1, learning_rate=1e6).fit(stream(VALUES), seed=0)


def test_a_finishing_method_sees_the_held_out_tiles():
    class Finishing(Mean):
        def finish(self, head, batches):
            assert not head.training
            self.seen = [value for (batch,) in batches for value in batch.tolist()]

    for schedule, count in (("original", 2), ("paper", 10)):
        model = Finishing((4, 4), schedule=schedule)
        model.fit(stream(VALUES), seed=0)
        assert len(model.seen) == count
        trained = {value for batch in model.batches for value in batch}
        assert set(model.seen).isdisjoint(trained) == (schedule == "original")


def test_errors():
    with pytest.raises(InputError, match="mean has no schedule 'short'; it has paper, original"):
        Mean((4, 4), schedule="short")
    with pytest.raises(InputError, match=r"mean: expected positive numbers, but got steps 0, learning_rate -1\.0"):
        Mean((4, 4), steps=0, learning_rate=-1.0)
    with pytest.raises(BatchTooLargeError, match=r"a batch of 4 is larger than the 3 tiles .* --batch-size 3 or less"):
        Mean((4, 4)).fit(stream(VALUES[:3]), seed=0)
    with pytest.raises(BatchTooLargeError, match=r"the 3 tiles a model is trained on \(1 of 4 images are held out"):
        Mean((4, 4), schedule="original").fit(stream(VALUES[:4]), seed=0)

    class Scaling(Mean):
        holds_out, minimum_held_out = True, 2

    Scaling((4, 4)).check_counts(8, 8)  # a fifth is 1.6
    with pytest.raises(TooFewImagesError, match="on 2 held-out images or more and needs at least 8 training images"):
        Scaling((4, 4)).check_counts(7, 7)
    with pytest.raises(TooFewImagesError, match="mean needs at least 2 training images, one to validate on"):
        Mean((4, 4), schedule="original").fit(stream(VALUES[:1]), seed=0)
    assert gradient.VALIDATION_FRACTION == 0.2


class Normalised(nn.Module):
    """A batch normalisation before the value."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.rand(1))
        self.norm = nn.BatchNorm1d(1)

    def forward(self, brightness):
        return self.norm(self.value * brightness[:, None])


class WithNorm(Mean):
    """What its normalisation sees changes with every step."""

    def new_head(self):
        return Normalised()

    def loss(self, head, inputs):
        return ((head(inputs[0]) - 1) ** 2).mean() + ((head.value - 3) ** 2).sum()


@pytest.mark.parametrize("schedule", ["paper", "original"])
def test_batch_normalisation_is_measured_with_the_weights_that_are_kept(schedule):
    model = WithNorm((4, 4), schedule=schedule, steps=3, batch_size=8, learning_rate=0.1)
    tiles = stream(VALUES[:8] if schedule == "paper" else VALUES)  # every batch holds all tiles to train on
    head = model.fit(tiles, seed=0)
    training, _ = model._split(tiles, 0)
    seen = head.value.item() * np.array([VALUES[n] / 100 for n in training])
    assert head.norm.running_mean.item() == pytest.approx(seen.mean(), rel=1e-5)
    assert head.norm.running_var.item() == pytest.approx(seen.var(ddof=1), rel=1e-5)
    assert head.norm.momentum == 0.1
    assert not head.training


@pytest.mark.usefixtures("validates_after_every_epoch")
def test_states_are_compared_by_normalisation_that_does_not_lag():
    """The loss that chose the state is that of the head as it is delivered, from the first epoch on."""
    model = WithNorm((4, 4), schedule="original", steps=6, batch_size=8, learning_rate=0.1)
    tiles = stream(VALUES)  # an epoch is a batch
    head = model.fit(tiles, seed=0)
    (losses,) = model.losses
    _, validation = model._split(tiles, 0)
    with torch.no_grad():
        delivered = model.loss(head, gradient.HeadInputs(tiles, torch.device("cpu"))[validation]).item()
    chosen = dict(losses.validation)[losses.kept_step]
    assert chosen == min(value for _, value in losses.validation)
    assert delivered == pytest.approx(chosen, rel=1e-5)


@pytest.mark.usefixtures("validates_after_every_epoch")
def test_validation_draws_alike_each_time():
    class Drawing(Mean):
        def loss(self, head, inputs):
            return super().loss(head, inputs) * (1 if head.training else torch.rand(()).item())

    model = Drawing((4, 4), schedule="original", learning_rate=1e-12)  # the same head each time
    model.fit(stream(VALUES), seed=0)
    values = [value for _, value in model.losses[0].validation]
    assert len(values) == 3
    assert values == pytest.approx([values[0]] * 3)


def test_what_an_epoch_drops_is_made_up_for():
    model = Mean((4, 4), schedule="original", batch_size=3)  # 8 tiles to train on: 2 batches and two thirds
    model.fit(stream(VALUES), seed=0)
    assert len([batch for batch in model.batches if len(batch) == 3]) == 9


def test_validations_are_whole_epochs_and_some_steps_apart():
    model = Mean((4, 4), schedule="original", steps=15)  # an epoch is 2 steps: validated after 3 of them
    model.fit(stream(VALUES), seed=0)
    assert [step for step, _ in model.losses[0].validation] == [6, 12, 15]
    model = Mean((4, 4), schedule="original", steps=16, batch_size=1)  # an epoch is 8 steps
    model.fit(stream(VALUES), seed=0)
    assert [step for step, _ in model.losses[0].validation] == [8, 16]


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_loss_trains_alike():
    def fit(**compiled):
        model = WithNorm((4, 4), schedule="original", steps=6, learning_rate=0.1, **compiled)
        return model.config, model.fit(stream(VALUES), seed=0).state_dict()

    (_, eager), (config, compiled) = fit(), fit(compiled=True)
    assert config["compiled"]
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6)


def test_what_torch_cannot_compile_is_one_line(monkeypatch):
    def refused(*_args, **_kwargs):
        raise TorchDynamoException("no compiler\nset TORCH_LOGS")

    monkeypatch.setattr(torch, "compile", lambda *_args, **_kwargs: refused)
    with pytest.raises(InputError, match=r"cannot compile the loss here: no compiler; leave -p compiled=true out"):
        Mean((4, 4), compiled=True).fit(stream(VALUES), seed=0)
