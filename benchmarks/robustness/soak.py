"""A hundred thousand frames with faults among them: does anything grow, and is every frame accounted for?

    python benchmarks/robustness/soak.py [--frames 100000] [--fault-rate 0.01] [BUNDLE]

Without a bundle: a tiny one of four tiles on OpenVINO, so that the time goes into the runtime and not into the graphs.
The frames come in spans, each a stream of its own under the next of three policies (report, skip, fall back). Injected
are None, frames of another size, sources that raise and that end, engines that fail and that give NaN, now and then a
slow source and a slow reader. Printed are memory, handles, threads and latency with their slopes per 10 000 frames, and
per fault how many were injected, counted by `Detector.stats`, and what became of them. Exit code 1 where a count is
off, or a result is not that of its frame.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import edge_ad
from edge_ad.benchmarks.memory import resident_bytes
from edge_ad.errors import InferenceError, SourceError
from edge_ad.runtime.faults import Fault, FaultPolicy, Stats
from edge_ad.runtime.result import Verdict

SPANS = 30  # streams
IMAGES = 16
SOURCE_FAULTS = (Fault.NO_FRAME, Fault.CHANGED, Fault.SOURCE)
ENGINE_FAULTS = (Fault.INFERENCE, Fault.NON_FINITE)
SLOW_S, SLOW_EVERY = 0.002, 997


@dataclass(frozen=True)
class Sample:
    """The process after a span."""

    frames: int  # read so far
    resident_bytes: int
    handles: int
    threads: int
    latency_ms: float  # median of the span's results, from convert to post


@dataclass(frozen=True)
class Report:
    """What a soak saw."""

    samples: list[Sample]
    injected: Counter[Fault]
    stats: Stats
    wrong: int  # results that are not those of their frame, or error results without a fault
    seconds: float

    @property
    def complaints(self) -> list[str]:
        """What is off; empty where all is well."""
        found = [
            f"{fault}: {self.injected[fault]} injected, {self.stats.faults.get(fault, 0)} counted"
            for fault in Fault
            if self.injected[fault] != self.stats.faults.get(fault, 0)
        ]
        if self.wrong:
            found.append(f"{self.wrong} results are wrong")
        if self.stats.pending:
            found.append(f"{self.stats.pending} frames are unaccounted for")
        return found

    def slope(self, of: Callable[[Sample], float]) -> float:
        """Least-squares slope of a field per 10 000 frames, over the second half: the first warms caches up."""
        half = self.samples[len(self.samples) // 2 :]
        return float(np.polyfit([sample.frames for sample in half], [of(sample) for sample in half], 1)[0] * 10_000)


class FaultySession:
    """A session that fails or gives NaN for some of its runs."""

    def __init__(self, session: Any, rate: float, injected: Counter[Fault], seed: int) -> None:
        self._session = session
        self._rate = rate
        self._injected = injected
        self._random = np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feeds: Any) -> Any:
        """As the session, or worse."""
        if self._random.random() < self._rate:
            fault = ENGINE_FAULTS[self._random.integers(2)]
            self._injected[fault] += 1
            if fault is Fault.INFERENCE:
                raise InferenceError("injected: the device is gone")
            self._nan = True
        return self._session.run(feeds)

    def fetch(self, handle: Any) -> Any:
        """As the session, or NaN where `run` said so."""
        values = self._session.fetch(handle)
        if self.__dict__.pop("_nan", False):
            return np.full_like(values, np.nan)
        return values


class FaultySource:
    """Frames of a span, opened again until all were given."""

    def __init__(self, images: list[NDArray[np.uint8]], count: int, rate: float, injected: Counter[Fault], seed: int):
        self._images = images
        self._left = count
        self._rate = rate
        self._injected = injected
        self._random = np.random.default_rng(seed)
        self._other = np.zeros((7, 11, 3), np.uint8)
        self.numbers: list[int] = []  # of the images given, by frame_id; -1: of another size

    def __call__(self) -> Iterator[Any]:
        """Open it. Each opening gives a frame at least, until all were given."""
        opening = len(self.numbers)
        if not self._left:
            self._injected[Fault.SOURCE] += 1  # it is gone for good, and the stream raises
        while self._left:
            self._left -= 1
            number = int(self._random.integers(len(self._images)))
            calm = len(self.numbers) == opening or self._random.random() >= self._rate
            fault = None if calm else SOURCE_FAULTS[self._random.integers(3)]
            if self._left % SLOW_EVERY == 0:
                time.sleep(SLOW_S)
            if fault is None:
                self.numbers.append(number)
                yield self._images[number]
                continue
            self._injected[fault] += 1
            if fault is Fault.NO_FRAME:
                yield None
            elif fault is Fault.CHANGED:
                self.numbers.append(-1)
                yield self._other
            elif number % 2:
                raise OSError("injected: the cable is pulled")
            else:
                return  # the source ends
        if len(self.numbers) > opening:
            self._injected[Fault.SOURCE] += 1  # it ends here too


def policies() -> list[FaultPolicy]:
    """One per kind of answer."""
    common: dict[str, Any] = {"no_frame": "skip", "source": "reopen", "reopen_first_s": 0.0001, "reopen_attempts": 1}
    return [
        FaultPolicy(changed="report", inference="report", non_finite="report", **common),
        FaultPolicy(changed="skip", inference="skip", non_finite="skip", **common),
        FaultPolicy(changed="report", inference="fall_back", non_finite="fall_back", **common),
    ]


def soak(bundle: Path, frames: int, rate: float, *, spans: int = SPANS) -> Report:
    """Run ``frames`` frames of ``bundle``, about a share ``rate`` of them with faults of the source, as many others."""
    with edge_ad.load(bundle, precision="f32") as detector, edge_ad.load(bundle, precision="f32") as standby:
        random = np.random.default_rng(0)
        images = [random.integers(0, 256, (*detector.image_size, 3), dtype=np.uint8) for _ in range(IMAGES)]
        expected = [detector(image, color="rgb").raw_score for image in images]
        injected: Counter[Fault] = Counter()
        first = next(iter(detector.heads))
        detector.heads[first] = FaultySession(detector.heads[first], rate, injected, seed=1)
        samples: list[Sample] = []
        wrong = read = 0
        start_s = time.monotonic()
        for span in range(spans):
            policy = policies()[span % 3]
            count = frames // spans
            source = FaultySource(images, count, rate, injected, seed=span)
            falls = policy.inference == "fall_back"
            stream = detector.stream(source, color="rgb", policy=policy, standby=standby if falls else None)
            latencies_ms: list[float] = []
            with suppress(SourceError):  # at its end the source cannot be opened again
                for result in stream:
                    number = source.numbers[int(str(result.frame_id))]
                    if result.verdict is Verdict.ERROR:
                        wrong += result.fault is None or result.error is None
                    else:
                        wrong += number < 0 or result.raw_score != expected[number]
                    waits_ms = result.timings_ms["queue"] + result.timings_ms["handover"]
                    latencies_ms.append(result.timings_ms["total"] - waits_ms)
                    if len(latencies_ms) % SLOW_EVERY == 0:
                        time.sleep(SLOW_S)
            read += count
            samples.append(_sample(read, float(np.median(latencies_ms))))
        return Report(samples, injected, detector.stats(), wrong, time.monotonic() - start_s)


def _sample(frames: int, latency_ms: float) -> Sample:
    handles, threads = (len(list(Path("/proc/self", kind).iterdir())) for kind in ("fd", "task"))
    return Sample(frames, resident_bytes() or 0, handles, threads, latency_ms)


def tiny_bundle(folder: Path) -> Path:
    """The tests' tiny bundle."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from tiny_bundle import write_tiny_bundle

    path: Path = write_tiny_bundle(folder / "tiny.edgead")
    return path


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--frames", default=100_000, show_default=True)
@click.option("--fault-rate", default=0.01, show_default=True, help="Share of the frames, of source and engine each.")
def main(bundle: Path | None, frames: int, fault_rate: float) -> None:
    """Print two markdown tables."""
    logging.getLogger("edge_ad.runtime").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        report = soak(bundle or tiny_bundle(Path(folder)), frames, fault_rate)
    stats, last = report.stats, report.samples[-1]
    click.echo(f"{last.frames} frames in {report.seconds:.0f} s, {len(report.samples)} streams\n")
    click.echo("| of the process | after the first stream | after the last | slope per 10 000 frames, second half |")
    click.echo("| --- | ---: | ---: | ---: |")
    rows: list[tuple[str, Callable[[Sample], float], str]] = [
        ("resident memory, MB", lambda sample: sample.resident_bytes / 1e6, ".3f"),
        ("handles", lambda sample: sample.handles, ".2f"),
        ("threads", lambda sample: sample.threads, ".2f"),
        ("median latency, ms", lambda sample: sample.latency_ms, ".4f"),
    ]
    for name, of, digits in rows:
        values = (of(report.samples[0]), of(last), report.slope(of))
        click.echo(f"| {name} | {' | '.join(format(value, digits) for value in values)} |")
    click.echo("\n| fault | injected | counted |\n| --- | ---: | ---: |")
    for fault in (*SOURCE_FAULTS, *ENGINE_FAULTS):
        click.echo(f"| {fault} | {report.injected[fault]} | {stats.faults.get(fault, 0)} |")
    click.echo(
        f"\n{stats.captured} frames captured = {stats.results} results + {stats.skipped} skipped + {stats.dropped} "
        f"dropped + {stats.pending} pending; of the results {stats.reported} are errors and {stats.substituted} the "
        f"standby's; sources were opened again {stats.reopened} times; {report.wrong} results are wrong"
    )
    for complaint in report.complaints:
        click.echo(f"OFF: {complaint}", err=True)
    sys.exit(bool(report.complaints))


if __name__ == "__main__":
    main()
