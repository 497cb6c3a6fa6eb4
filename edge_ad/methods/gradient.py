"""Methods whose heads are trained by gradient descent: one loop for all of them.

A method says what its head is, what its loss is, and under which named schedules it is trained; batches, validation,
seeds, divergence and progress are here. Extractors are frozen and their features are held, see `HeadInputs`: a method
that augments does so in its loss.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_ad.errors import BatchTooLargeError, DivergedError, InputError, TooFewImagesError
from edge_ad.methods.head_inputs import HeadInputs
from edge_ad.methods.parts.batch_statistics import measured_anew
from edge_ad.methods.parts.full_float32 import full_float32
from edge_ad.methods.parts.photographs import Photographs
from edge_ad.methods.parts.seeding import seeded
from edge_ad.methods.tile_model import HeadInt8, Losses, TileModel, TileStream
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import Size

VALIDATION_FRACTION = 0.2  # of the training images, where a schedule keeps the best state
# Steps from one look at the losses to the next: a look waits for all that a GPU has been told to do, and keeps a copy
# of the head. On a CPU there is nothing to wait for.
STEPS_PER_LOOK = {"cpu": 1, "cuda": 50}

STEPS_PER_VALIDATION = 5  # at least: an epoch of a small set may be a single step
SETTLING_BATCHES = 8  # that batch normalisation is measured on once the weights stand
VALIDATION_BATCHES = 2  # and before each validation: enough to tell states apart

Inputs = tuple[Tensor, ...]  # what a head is fed: the tile where it takes it, then the features


@dataclass(frozen=True)
class Schedule:
    """How a head is trained.

    Args:
        optimiser: makes one from parameters and ``lr``.
        learning_rate: until ``decay_at`` of the steps; a tenth of it from there on.
        batch_size: tiles per step, always whole: what is left of an epoch is dropped.
        steps: updates.
        epochs: passes over the training tiles, where ``steps`` is None; what is dropped of each is made up for.
        keep_best: hold out `VALIDATION_FRACTION` of the images, and keep the state of lowest loss on them, looked at
            after whole epochs and after the last step. They are training images, drawn by seed; thresholds are
            fitted on others.
        decay_at: fraction of the steps.
    """

    optimiser: Callable[..., torch.optim.Optimizer]
    learning_rate: float
    batch_size: int
    steps: int | None = None
    epochs: int | None = None
    keep_best: bool = False
    decay_at: float = 1.0


@dataclass(frozen=True)
class Stage:
    """A part of a head that is trained while the rest stays as it is.

    Args:
        what: for progress.
        module: whose parameters move.
        loss: of the head, see `GradientModel.loss`.
        drawn: what the loss is given in place of a batch, see `GradientModel.drawn`; the batch where None.
    """

    what: str
    module: nn.Module
    loss: Callable[[nn.Module, Inputs], Tensor]
    drawn: Callable[[Inputs], Inputs] | None = None

    def inputs(self, batch: Inputs) -> Inputs:
        """Of the loss."""
        return self.drawn(batch) if self.drawn else batch


class GradientModel(TileModel):
    """A method with a trained head. Subclasses set `schedules` and write `new_head` and `loss`.

    Args:
        tile_size, config: see `TileModel`.
        schedule: one of `schedules`: ``"paper"``, 200 steps of 32 tiles as arXiv 2403.04932 trains FastFlow and Reverse
            Distillation, or ``"original"``, the method's own authors'; `default_schedule` where None.
        steps, batch_size, learning_rate, keep_best: replace the schedule's.
        bf16: run convolutions and products of training steps in bfloat16, weights stay float32: up to twice the speed
            on machines that have it.
        compiled: let torch compile the loss and its gradients, so that a step keeps a GPU busy for less long. It takes
            about half a minute first, and needs a C++ compiler, and Triton on a GPU.

    Raises:
        InputError: no such schedule, or a number that is not positive.
    """

    schedules: ClassVar[Mapping[str, Schedule]]
    default_schedule: ClassVar[str] = "paper"
    holds_out: ClassVar[bool] = False  # images to `finish` on, where the schedule keeps the last state
    minimum_held_out: ClassVar[int] = 1  # of those images
    head_int8: ClassVar[HeadInt8] = HeadInt8.QUANTISE
    photographs: Photographs | None = None  # what a student is not to imitate, where a method takes them

    def __init__(
        self,
        tile_size: Size,
        config: dict[str, Any],
        *,
        schedule: str | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        keep_best: bool | None = None,
        bf16: bool = False,
        compiled: bool = False,
    ) -> None:
        schedule = schedule or self.default_schedule
        if schedule not in self.schedules:
            raise InputError(f"{self.name} has no schedule {schedule!r}; it has {', '.join(self.schedules)}")
        numbers = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
        if bad := [f"{key} {value}" for key, value in numbers.items() if value is not None and value <= 0]:
            raise InputError(f"{self.name}: expected positive numbers, but got {', '.join(bad)}")
        given: dict[str, Any] = {**numbers, "keep_best": keep_best}
        changes = {key: value for key, value in given.items() if value is not None}
        self.schedule = replace(self.schedules[schedule], **changes)
        self.bf16, self.compiled = bf16, compiled
        switches = {"keep_best": keep_best, "bf16": bf16 or None, "compiled": compiled or None}
        switched = {key: value for key, value in switches.items() if value is not None}
        super().__init__(tile_size, config | {"schedule": schedule} | numbers | switched)

    @abstractmethod
    def new_head(self) -> nn.Module:
        """An untrained head on the CPU. Random numbers come from torch's global generator, which `fit` seeds."""

    def drawn(self, inputs: Inputs) -> Inputs:
        """What `loss` is given in place of ``inputs``: with what a step draws at random, such as photographs.

        Files are read, and random numbers drawn, here: the loss is a function of tensors, which torch can compile.
        """
        return inputs

    @abstractmethod
    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """What training lowers, a scalar: a mean over the batch, so that it does not depend on its size.

        Args:
            head: in training or in evaluation mode.
            inputs: see `drawn`.
        """

    def stages(self, head: nn.Module) -> Sequence[Stage]:
        """What is trained after what, each by the whole schedule: one stage, unless a method needs several."""
        return [Stage("training", head, self.loss, self.drawn)]

    def prepare(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """Set what a head computes from before it is trained, such as the range of the features.

        Args:
            head: untrained, on `device`; changed in place.
            batches: of the tiles to train on.
        """

    def finish(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """Set what a head computes once trained, such as the range of its maps. Nothing, unless a method needs it.

        Args:
            head: in evaluation mode; changed in place.
            batches: of the validation tiles, or of all tiles where the schedule holds none out.
        """

    def head_from_state(self, state: Mapping[str, Tensor]) -> nn.Module:
        """See `TileModel.head_from_state`."""
        head = self.new_head()
        head.load_state_dict(state)
        return head.eval()

    def check_counts(self, images: int, tiles: int) -> None:
        """See `TileModel.check_counts`.

        Raises:
            TooFewImagesError: also where a part of the images would leave fewer than `minimum_held_out`.
            BatchTooLargeError: fewer tiles to train on than a batch.
            DataNotFoundError, EmptyDataError: no photographs where they are wanted, see `photograph_files`.
        """
        super().check_counts(images, tiles)
        if self.photographs:
            self.photographs.files  # noqa: B018 - raises
        if self.holds_out and self._held_out(images) < self.minimum_held_out:
            enough = next(n for n in itertools.count(images) if self._held_out(n) >= self.minimum_held_out)
            raise TooFewImagesError(
                f"{self.name} scales its maps on {self.minimum_held_out} held-out images or more and needs at least "
                f"{enough} training images for that, but got {images}; give more"
            )
        if images <= (held := self._held_out(images)):
            raise TooFewImagesError(f"{self.name} needs at least 2 training images, one to validate on; give more")
        training = (images - held) * (tiles // images)
        if self.schedule.batch_size > training:
            raise BatchTooLargeError(
                f"a batch of {self.schedule.batch_size} is larger than the {training} tiles a model is trained on "
                f"({held} of {images} images are held out to validate on); "
                f"train with --batch-size {training} or less, or with more images"
            )

    def fit(self, tiles: TileStream, seed: int, progress: Progress = no_progress) -> nn.Module:
        """A trained head; see `TileModel.fit`.

        Raises:
            DivergedError: the loss became NaN or infinite. Seen up to `STEPS_PER_LOOK` later; the state is that of the
                last look.
        """
        self.check_counts(len(tiles.images), len(tiles))
        size = self.schedule.batch_size
        training, validation = self._split(tiles, seed)
        inputs = HeadInputs(tiles, self.device)
        with seeded(seed, self.device):
            head = self.new_head().to(self.device)
            with torch.no_grad(), full_float32():
                self.prepare(head, inputs.batches(training, size))
            self.losses = tuple(
                self._train(stage, head, inputs, training, validation, progress) for stage in self.stages(head)
            )
            with torch.no_grad(), full_float32():
                self.finish(head.eval(), inputs.batches(validation or training, size))
        return head.cpu()

    def _train(
        self,
        stage: Stage,
        head: nn.Module,
        inputs: HeadInputs,
        training: Sequence[int],
        validation: Sequence[int],
        progress: Progress,
    ) -> Losses:
        schedule, where = self.schedule, inputs.tiles.locations[0].name
        size, epoch = schedule.batch_size, len(training) // schedule.batch_size
        per_validation = epoch * math.ceil(STEPS_PER_VALIDATION / epoch)
        loss_of = _compiled(stage.loss) if self.compiled else stage.loss
        steps = schedule.steps or (schedule.epochs or 1) * math.ceil(len(training) / size)
        fused = {"fused": True} if self.device.type == "cuda" else {}  # a few kernels per step instead of dozens
        optimiser = schedule.optimiser(stage.module.parameters(), lr=schedule.learning_rate, **fused)
        per_look, unseen = STEPS_PER_LOOK[self.device.type], list[Tensor]()
        good, best, lowest, kept = _state(head), _state(head), float("inf"), steps
        seen: list[float] = []
        validated: list[tuple[int, float]] = []
        for step, batch in zip(range(1, steps + 1), _batches(training, size), strict=False):
            given = inputs[batch]  # in float32, whether held or, where there is no room, extracted anew
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = loss_of(head.train(), stage.inputs(given))
            unseen.append(loss.detach())
            validates = schedule.keep_best and (step % per_validation == 0 or step == steps)
            if len(unseen) == per_look or step == steps or validates:
                found = torch.stack(unseen).tolist()
                for at, value in enumerate(found, step + 1 - len(found)):
                    _check_finite(value, where, at, good)
                good = _state(head)
                seen += found
                unseen.clear()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step == int(schedule.decay_at * steps) < steps:
                _decay(optimiser)
            if validates:
                value = self._validate(stage, head, inputs, training, validation)
                _check_finite(value, where, step, good)
                validated.append((step, value))
                if value < lowest:
                    best, lowest, kept = _state(head), value, step
            progress(step, steps, stage.what)
        if schedule.keep_best:
            head.load_state_dict(best)
        self._settle(stage, head, inputs, training, SETTLING_BATCHES)
        sums = torch.stack([value.detach().sum() for value in stage.module.parameters()])
        _check_finite(sums.sum().item(), where, steps, good)
        return Losses(stage.what, tuple(seen), tuple(validated), kept)

    @torch.no_grad()
    @full_float32()
    def _settle(self, stage: Stage, head: nn.Module, inputs: HeadInputs, training: Sequence[int], batches: int) -> None:
        """Measure what batch normalisation computes with anew, over ``batches`` with the weights kept."""
        with measured_anew(stage.module) as any_is_there:
            if any_is_there:
                head.train()
                for batch in itertools.islice(_batches(training, self.schedule.batch_size), batches):
                    stage.loss(head, stage.inputs(inputs[batch]))

    @torch.no_grad()
    @full_float32()
    def adapt(self, head: nn.Module, tiles: TileStream, seed: int) -> nn.Module:
        """See `TileModel.adapt`: `prepare` and `finish` anew, the trained part as it is."""
        kind = type(self)
        if kind.prepare is GradientModel.prepare and kind.finish is GradientModel.finish:
            return head
        adapted = copy.deepcopy(head).to(self.device)
        training, validation = self._split(tiles, seed)
        inputs, size = HeadInputs(tiles, self.device), self.schedule.batch_size
        self.prepare(adapted, inputs.batches(training or validation, size))
        self.finish(adapted, inputs.batches(validation or training, size))
        return adapted.cpu()

    @torch.no_grad()
    @full_float32()
    def _validate(
        self, stage: Stage, head: nn.Module, inputs: HeadInputs, training: Sequence[int], validation: Sequence[int]
    ) -> float:
        """Mean loss over the validation tiles, by normalisation that does not lag.

        What is drawn at random, such as photographs, is drawn alike each time, and changes nothing of the training.
        """
        total = torch.zeros((), device=self.device)
        with seeded(0, self.device):
            self._settle(stage, head, inputs, training, VALIDATION_BATCHES)
            head.eval()
            for batch in inputs.batches(validation, self.schedule.batch_size):
                total += stage.loss(head, stage.inputs(batch)) * len(batch[0])
        return (total / len(validation)).item()

    def _held_out(self, images: int) -> int:
        held = self.schedule.keep_best or self.holds_out
        return max(1, round(VALIDATION_FRACTION * images)) if held else 0

    def _split(self, tiles: TileStream, seed: int) -> tuple[list[int], list[int]]:
        """Numbers of the tiles to train on and to validate on. By image: tiles of one image may overlap."""
        count = len(tiles.images)
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        held_out = set(drawn[: self._held_out(count)])
        numbers = range(len(tiles))
        return [n for n in numbers if n % count not in held_out], [n for n in numbers if n % count in held_out]


def _compiled(loss: Callable[[nn.Module, Inputs], Tensor]) -> Callable[[nn.Module, Inputs], Tensor]:
    """``loss`` as torch compiles it when it is first called. It raises `InputError` where torch cannot."""
    from torch._dynamo.exc import TorchDynamoException  # takes as long to import as torch

    fast = torch.compile(loss, dynamic=False)

    def compiled(head: nn.Module, inputs: Inputs) -> Tensor:
        try:
            result: Tensor = fast(head, inputs)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"torch cannot compile the loss here: {reason}; leave -p compiled=true out") from error
        return result

    return compiled


def _batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Batches of ``size``, in a new order each epoch, without end."""
    while True:
        order = torch.randperm(len(numbers)).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield [numbers[i] for i in order[start : start + size]]


def _decay(optimiser: torch.optim.Optimizer) -> None:
    for group in optimiser.param_groups:
        group["lr"] *= 0.1


def _state(head: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in head.state_dict().items()}


def _check_finite(value: float, where: str, step: int, good: dict[str, Tensor]) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"tile {where}: training diverged at step {step}: the loss is no finite number; "
            "train with a smaller -p learning_rate=...",
            {key: value.cpu() for key, value in good.items()},
        )
