from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_fakes import make_detector, make_manifest

from edge_ad.benchmarks import run
from edge_ad.benchmarks.protocol import (
    THROUGHPUT_WARMUP,
    BareRun,
    Latency,
    Protocol,
    Schedule,
    Throughput,
    measure_latency,
    measure_throughput,
)
from edge_ad.benchmarks.timing import Timing
from edge_ad.errors import InputError
from edge_ad.setups import Sharing

IMAGE = np.random.default_rng(0).integers(0, 256, (34, 38, 3), dtype=np.uint8)


class CountingDetector:
    """Counts calls, and the rounds of the bare sessions in between."""

    def __init__(self):
        self.manifest = make_manifest()
        self.order = []
        self.shared = SimpleNamespace(run=self._bare)
        self.heads = {
            location: SimpleNamespace(run=lambda feeds: {}) for location in self.manifest.setup.grid.locations
        }

    def _bare(self, feeds):
        self.order.append("tile")
        return {}

    def raw(self, images):
        self.order.append(f"raw{len(images)}")

    def __call__(self, frame, *, color):
        self.order.append(f"call {color}")


def test_by_default_1000_warm_up_runs_and_1000_timed_ones():
    defaults = run.run_benchmark.__kwdefaults__
    schedule = Schedule(defaults["warmup"], defaults["iterations"], 0, 1)
    detector = CountingDetector()
    latency = measure_latency(detector, IMAGE, schedule)
    assert detector.order.count("raw1") == 2000
    assert detector.order.count("tile") == 2000 * 4
    assert (latency.end_to_end.count, latency.bare.count, latency.result.count) == (1000, 1000, 1000)
    assert schedule.protocol("padim") is Protocol.EFFICIENTAD


def test_each_round_runs_every_variant_once():
    detector = CountingDetector()
    measure_latency(detector, IMAGE, Schedule(1, 2, 0, 1))
    assert detector.order == ["raw1", "tile", "tile", "tile", "tile", "call rgb"] * 3


def test_throughput_runs_full_batches():
    detector = CountingDetector()
    throughput = measure_throughput(detector, IMAGE, Schedule(0, 1, 5, 7))
    assert detector.order == ["raw5"] * (THROUGHPUT_WARMUP + 7)
    assert (throughput.batch_size, throughput.runs.count) == (5, 7)


def test_throughput_is_16000_images_over_the_seconds_of_1000_runs():
    assert Throughput(16, Timing((20.0,) * 1000)).images_per_s == pytest.approx(16000 / 20)


def test_bare_ratio_divides_medians():
    latency = Latency(Timing((5.0, 6.0, 100.0)), Timing((4.0, 4.0, 9.0)), Timing((1.0,)))
    assert latency.bare_ratio == 1.5


@pytest.mark.parametrize(
    ("schedule", "method", "protocol"),
    [
        (Schedule(1000, 1000, 16, 1000), "padim", Protocol.EFFICIENTAD),
        (Schedule(1000, 1000, 8, 1000), "patchcore", Protocol.EFFICIENTAD),
        (Schedule(1000, 1000, 0, 1), "padim", Protocol.EFFICIENTAD),
        (Schedule(999, 1000, 16, 1000), "padim", Protocol.SHORTENED),
        (Schedule(1000, 10, 16, 1000), "padim", Protocol.SHORTENED),
        (Schedule(1000, 1000, 16, 100), "padim", Protocol.SHORTENED),
        (Schedule(1000, 1000, 16, 1000), "patchcore", Protocol.SHORTENED),
    ],
)
def test_only_the_published_counts_carry_its_name(schedule, method, protocol):
    assert schedule.protocol(method) is protocol


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((0, 0, 16, 1), "at least 1 timed run, but got 0"),
        ((-1, 1, 16, 1), "at least 0 warm-up runs, but got -1"),
        ((0, 1, -2, 1), "a batch of at least 1, or 0 for no throughput, but got -2"),
        ((0, 1, 16, 0), "at least 1 timed run, but got 0"),
    ],
)
def test_a_schedule_that_times_nothing_is_refused(counts, message):
    with pytest.raises(InputError, match=message):
        Schedule(*counts)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sharing", Sharing)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("global_model", [False, True])
def test_the_bare_sessions_see_exactly_the_detector_s_tiles(shared, sharing, batch_size, global_model):
    manifest = make_manifest(shared=shared, sharing=sharing, global_model=global_model)
    detector = make_detector(manifest, batch_size)
    images = np.random.default_rng(1).integers(0, 256, (batch_size, 34, 38, 3), dtype=np.uint8)

    detector.raw(images)
    expected = [list(session.seen) for session in detector.sessions]
    for session in detector.sessions:
        session.seen.clear()
    BareRun(detector, images)()

    assert sum(len(tiles) for tiles in expected) == 4 + global_model
    for session, tiles in zip(detector.sessions, expected, strict=True):
        np.testing.assert_equal(session.seen, tiles)
