"""A teacher for EfficientAD, distilled once from any backbone on a folder of ordinary photographs.

Source: Batzner, Heckler and König, "EfficientAD", arXiv 2303.14535, appendix, algorithm 3: the small network learns the
embedding that PatchCore makes of two layers of a WideResNet-101, of the photograph at twice the size, normalised per
channel. Their network is padded with zeros here and unpadded where it is used; ours is mirrored in both
(`edge_ad.methods.parts.pdn`), so that it is used as it was taught.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edge_ad import atomic
from edge_ad.errors import DivergedError, InputError, RunMismatchError, WrongWeightsError
from edge_ad.imaging import read_image, resize
from edge_ad.methods.efficient_ad import Teacher
from edge_ad.methods.head_inputs import memory_budget
from edge_ad.methods.parts.backbone import Backbone
from edge_ad.methods.parts.imitation import channel_statistics
from edge_ad.methods.parts.patch_embedding import patch_embedding
from edge_ad.methods.parts.pdn import layers_of, positions
from edge_ad.methods.parts.photographs import listing_digest, luminance, photograph_files
from edge_ad.methods.parts.seeding import seeded
from edge_ad.progress import Progress, no_progress
from edge_ad.training.run_folder import differences, load_tensors, save_tensors

BACKBONE = "wide_resnet101_2"
REDUCTIONS = (8, 16)  # of a WideResNet: layer2 and layer3
STEPS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 60_000, 16, 1e-4, 1e-5
IMAGE_PX = 256  # of the network; the backbone sees twice as much
GREY_SHARE = 0.1
MOST_FOR_STATISTICS = 10_000  # photographs
STEPS_PER_SAVE = 500


@dataclass(frozen=True)
class Distillation:
    """What decides a teacher.

    Args:
        size: "s" or "m".
        backbone, layers, weights: what it learns from, see `Backbone`; layers of stride 8 and 16 where none are named.
        steps, batch_size, learning_rate: the paper's.
        image_px: side of the squares that photographs are resized to.
        seed: of weights, batches and grey photographs.
        bf16: run both networks in bfloat16, weights stay float32: three times the speed on a CPU that multiplies it.
    """

    size: str = "s"
    backbone: str = BACKBONE
    layers: tuple[str, ...] = ()
    weights: str = "auto"
    steps: int = STEPS
    batch_size: int = BATCH_SIZE
    learning_rate: float = LEARNING_RATE
    image_px: int = IMAGE_PX
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        numbers = ("steps", "batch_size", "learning_rate", "image_px")
        if bad := [f"{name} {getattr(self, name)}" for name in numbers if not getattr(self, name) > 0]:
            raise InputError(f"expected positive numbers, but got {', '.join(bad)}")


def distil(
    photographs: Path,
    output: Path,
    settings: Distillation = Distillation(),
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    progress: Progress = no_progress,
) -> float:
    """Write the teacher's weights to ``output`` (safetensors) and return the mean loss of the last steps.

    The state so far lies beside it, in ``OUTPUT.state``, and is taken up again when the same is asked for; a batch
    depends on seed and step alone, so the result is the same, to the bit on one CPU.

    Args:
        photographs: see `photograph_files`.
        output: ends in ``.safetensors``; replaced where it is there.

    Raises:
        InputError: another ending.
        RunMismatchError: the state beside it was made with other settings or photographs.
        DivergedError: the loss became NaN or infinite.
        OutputWriteError: ``output`` cannot be written; told before the work begins, where that can be known.
        UnreadableImageError and others of `Backbone`.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a teacher is written as .safetensors")
    files = photograph_files(photographs)
    atomic.check_writable(output)
    source = Backbone(settings.backbone, settings.layers, settings.weights, REDUCTIONS).to(device)
    remarks = {"settings": json.dumps(asdict(settings) | {"photographs": listing_digest(photographs, files)})}
    with seeded(settings.seed):
        teacher = Teacher(layers_of(settings.size), mirror=True).to(device)
    student = _Student(teacher, source, settings, files, device)
    path = Path(f"{output}.state")
    if path.exists():
        step = student.restore(path, remarks["settings"])
    else:
        student.measure(progress)
        step = 0
        save_tensors(path, student.state(step), remarks)
    recent: list[float] = []
    while step < settings.steps:
        loss = student.learn(step)
        step += 1
        if not np.isfinite(loss):
            raise DivergedError(f"distillation diverged at step {step}; use a smaller --learning-rate", {})
        recent = [*recent[-99:], loss]
        progress(step, settings.steps, f"distilling, loss {np.mean(recent):.4f}")
        if step % STEPS_PER_SAVE == 0 and step < settings.steps:
            save_tensors(path, student.state(step), remarks)
    network = {key: value.detach().cpu() for key, value in teacher.network.net.state_dict().items()}
    save_tensors(output, network, remarks | {"loss": f"{np.mean(recent):.6f}" if recent else "unknown"})
    path.unlink(missing_ok=True)
    return float(np.mean(recent)) if recent else float("nan")


class _Student:
    """The network being taught, its optimiser, and the range of what it learns."""

    def __init__(
        self, teacher: Teacher, source: Backbone, settings: Distillation, files: Sequence[Path], device: torch.device
    ) -> None:
        self.teacher, self.source, self.settings, self.files, self.device = teacher, source, settings, files, device
        self.channels = layers_of(settings.size)[-1].channels
        self.optimiser = torch.optim.Adam(
            teacher.network.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
        )
        self.mean = torch.zeros(1, self.channels, 1, 1, device=device)
        self.std = torch.ones(1, self.channels, 1, 1, device=device)
        self._budget = memory_budget(device)
        self._held: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    def measure(self, progress: Progress) -> None:
        """Mean and standard deviation of the embedding's channels over the photographs."""
        size = self.settings.batch_size
        # Drawn: in order of their names they would be of the first few classes
        files = np.random.default_rng(self.settings.seed).permutation(len(self.files))[:MOST_FOR_STATISTICS].tolist()

        def targets() -> Iterator[Tensor]:
            for start in range(0, len(files), size):
                shown = [self._shown(index, grey=False) for index in files[start : start + size]]
                yield self.target(torch.stack([large for _, large in shown]))
                progress(min(start + size, len(files)), len(files), "measuring the backbone")

        mean, std = channel_statistics(targets())
        self.mean.copy_(mean)
        self.std.copy_(std)

    def learn(self, step: int) -> float:
        """One step, and its loss before it."""
        rng = np.random.default_rng((self.settings.seed, step))
        chosen = rng.integers(len(self.files), size=self.settings.batch_size)
        shown = [self._shown(int(index), grey=rng.random() < GREY_SHARE) for index in chosen]
        small, large = (torch.stack(images) for images in zip(*shown, strict=True))
        wanted = (self.target(large) - self.mean) / self.std
        with self._products():
            (described,) = self.teacher(small)
        loss = (wanted - described.float()).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """The embedding (n, C, h', w') at the positions of the network, not normalised.

        Args:
            images: uint8 (n, 2 h, 2 w, 3) RGB, twice the network's size.
        """
        with self._products():
            maps = self.source(images)
        embedding = patch_embedding([each.float() for each in maps], self.channels)
        size = positions((self.settings.image_px, self.settings.image_px), mirror=True)
        if embedding.shape[2:] != size:
            embedding = torch.nn.functional.interpolate(embedding, size=size, mode="bilinear")
        return embedding

    def _products(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16)

    def _shown(self, index: int, *, grey: bool) -> tuple[Tensor, Tensor]:
        """A photograph at the network's size and at twice that, on the device; held from then on while it fits."""
        if (index, grey) in self._held:
            return self._held[index, grey]
        image, side = read_image(self.files[index]), self.settings.image_px
        if grey:
            image = _grey(image)
        small, large = (torch.from_numpy(resize(image, (px, px))).to(self.device) for px in (side, 2 * side))
        if (small.nbytes + large.nbytes) * (len(self._held) + 1) <= self._budget:
            self._held[index, grey] = small, large
        return small, large

    def state(self, step: int) -> dict[str, Tensor]:
        """Everything that the next step depends on, beside the settings."""
        state = {f"network.{key}": value for key, value in self.teacher.network.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{index}.{key}": value for key, value in moments.items()}
        state |= {"mean": self.mean, "std": self.std, "step": torch.tensor(step)}
        return {key: value.detach().cpu() for key, value in state.items()}

    def restore(self, path: Path, settings: str) -> int:
        """Take up a `state`, and return its step."""
        try:
            with safe_open(path, "pt") as file:
                there = (file.metadata() or {}).get("settings", "{}")
        except SafetensorError as error:
            raise WrongWeightsError(f"{path} is damaged: {error}; delete it to begin anew") from error
        if found := differences(json.loads(there), json.loads(settings)):
            raise RunMismatchError(
                f"{path} was begun with other settings ({'; '.join(found)}); choose another -o, or delete it"
            )
        state = load_tensors(path)
        part = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
        self.teacher.network.load_state_dict(part)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        whole: dict[str, Any] = self.optimiser.state_dict() | {"state": moments}
        self.optimiser.load_state_dict(whole)
        self.mean.copy_(state["mean"])
        self.std.copy_(state["std"])
        return int(state["step"])


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = luminance(torch.from_numpy(image)).round().byte().numpy()
    return np.repeat(grey, 3, axis=2)
