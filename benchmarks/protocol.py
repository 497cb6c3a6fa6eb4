"""The EfficientAD timing protocol, over a tiled ensemble.

Latency: batch 1; 1000 warm-up runs, then the mean of the next 1000. Throughput: 16 * 1000 images over the seconds of
1000 runs at batch 16; batch 8 for PatchCore. The clock runs from the image in host memory to the anomaly map as a
numpy array. The timed step of an ensemble is tiling, all tiles, and merging; here it holds the smoothing of the seams
as well, and a global model where there is one. Decoding, resizing, normalisation and thresholds lie outside.

Sources: Batzner et al., "EfficientAD", arXiv 2303.14535, section 4 and appendix (1000 + 1000 runs, batch 1, throughput
at batch 16). Rolih et al., arXiv 2403.04932, section 4: the ensemble's step, and batch 8 for PatchCore. The papers do
not say whether seams are inside, nor how throughput is warmed up: here by `THROUGHPUT_WARMUP` runs, the machine being
warm from the latency runs.

Beside it, in the same loop and interleaved with it, run

- the bare sessions: the same graphs on the same tiles, already cut, with neither cropping, merging, seams nor checks.
  What the end-to-end time has over it is the price of the detector.
- the whole call of the detector, up to the `Result`: what an application waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_ad.benchmarks.timing import Timing, check_counts, time_interleaved
from edge_ad.errors import InputError
from edge_ad.imaging import resize
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.feature_windows import FeatureWindows
from edge_ad.runtime.session import Session
from edge_ad.setups import ExtractorScope
from edge_ad.tiling import WHOLE, Location

WARMUP = 1000
ITERATIONS = 1000
THROUGHPUT_WARMUP = 10

Image = NDArray[np.uint8]


class Protocol(StrEnum):
    """Whether the runs are those of the published protocol."""

    EFFICIENTAD = "efficientad"
    SHORTENED = "shortened"  # other counts, or another batch: not to be compared with published figures


@dataclass(frozen=True)
class Schedule:
    """How often to run what.

    Args:
        warmup: untimed runs at batch 1.
        iterations: timed runs at batch 1.
        throughput_batch: images per throughput run; 0 measures none.
        throughput_iterations: timed throughput runs.
        throughput_warmup: untimed throughput runs.

    Raises:
        InputError: a count is too small.
    """

    warmup: int
    iterations: int
    throughput_batch: int
    throughput_iterations: int
    throughput_warmup: int = THROUGHPUT_WARMUP

    def __post_init__(self) -> None:
        check_counts(self.warmup, self.iterations)
        if self.throughput_batch < 0:
            raise InputError(f"expected a batch of at least 1, or 0 for no throughput, but got {self.throughput_batch}")
        if self.throughput_batch:
            check_counts(self.throughput_warmup, self.throughput_iterations)

    def protocol(self, method: str) -> Protocol:
        """The published protocol, or not, for a method of this name."""
        latency = (self.warmup, self.iterations) == (WARMUP, ITERATIONS)
        throughput = (self.throughput_batch, self.throughput_iterations) == (throughput_batch(method), ITERATIONS)
        published = latency and (throughput or not self.throughput_batch)
        return Protocol.EFFICIENTAD if published else Protocol.SHORTENED


@dataclass(frozen=True)
class Latency:
    """Runs at batch 1, interleaved."""

    end_to_end: Timing  # image in host memory to anomaly map: the protocol's figure
    bare: Timing  # the sessions alone
    result: Timing  # `Detector.__call__`: end to end, then normalisation, mask and label

    @property
    def bare_ratio(self) -> float:
        """Median end to end over median of the bare sessions; 1 is the limit."""
        return self.end_to_end.median_ms / self.bare.median_ms


@dataclass(frozen=True)
class Throughput:
    """Runs at a larger batch."""

    batch_size: int
    runs: Timing

    @property
    def images_per_s(self) -> float:
        """Batch size x runs / seconds of all runs."""
        return self.batch_size * self.runs.count / (self.runs.total_ms / 1000)


def throughput_batch(method: str) -> int:
    """The protocol's batch for throughput.

    >>> throughput_batch("padim"), throughput_batch("patchcore")
    (16, 8)
    """
    return 8 if method == "patchcore" else 16


def measure_latency(
    detector: Detector, image: Image, schedule: Schedule, after_round: Callable[[], object] = lambda: None
) -> Latency:
    """Time the detector at batch 1 on ``image`` uint8 (H, W, 3) RGB of the bundle's size."""
    batch = image[None]
    timings = time_interleaved(
        {
            "end_to_end": lambda: detector.raw(batch),
            "bare": BareRun(detector, batch),
            "result": lambda: detector(image, color="rgb"),
        },
        schedule.warmup,
        schedule.iterations,
        after_round,
    )
    return Latency(**timings)


def measure_throughput(
    detector: Detector, image: Image, schedule: Schedule, after_round: Callable[[], object] = lambda: None
) -> Throughput:
    """Time a detector loaded with ``schedule.throughput_batch`` on copies of ``image`` uint8 (H, W, 3) RGB."""
    batch = np.repeat(image[None], schedule.throughput_batch, axis=0)
    timings = time_interleaved(
        {"runs": lambda: detector.raw(batch)}, schedule.throughput_warmup, schedule.throughput_iterations, after_round
    )
    return Throughput(schedule.throughput_batch, timings["runs"])


class _Step(NamedTuple):
    feeds: dict[str, Any]
    head: Session


class BareRun:
    """The detector's own sessions over tiles already cut, up to maps and scores in host memory.

    Args:
        detector: its sessions are used as they are.
        images: uint8 (B, H, W, 3), B as the detector was loaded with.
    """

    def __init__(self, detector: Detector, images: Image) -> None:
        setup = detector.manifest.setup
        cut = zip(*(setup.grid.crop(image) for image in images), strict=True)
        tiles = dict(zip(setup.grid.locations, cut, strict=True))
        if setup.global_model:
            tiles[WHOLE] = tuple(resize(image, setup.tile_size) for image in images)
        self._shared = detector.shared
        self._whole: dict[str, Any] | None = None
        windows: dict[Location, dict[str, Any]] = {}
        if self._shared and setup.extractor_scope is ExtractorScope.IMAGE:
            self._whole = {"image": np.stack([setup.grid.pad(image) for image in images])}
            found = {name: self._shared.fetch(handle) for name, handle in self._shared.run(self._whole).items()}
            cutter = FeatureWindows(setup.grid, self._shared.outputs, detector.manifest.feature_axes, len(images))
            windows = {
                location: {name: part.copy() for name, part in cutter.cut(found, location).items()}
                for location in setup.locations
            }
        self._steps = [
            _Step(
                {"image": np.stack(tiles[location]), **windows.get(location, {})},
                detector.heads[setup.model_of(location)],
            )
            for location in setup.locations
        ]

    def __call__(self) -> None:
        """Run every graph as often as one batch needs."""
        if self._shared and self._whole:
            self._shared.run(self._whole)
        for feeds, head in self._steps:
            features = self._shared.run(feeds) if self._shared and not self._whole else {}
            outputs = head.run({**feeds, **features})
            for handle in outputs.values():
                head.fetch(handle)
