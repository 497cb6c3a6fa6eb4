"""Writes the tables of the documents from what experiments and benchmarks wrote: ``make docs``.

    <!-- table: methods -->            accuracy by docs/results/methods.jsonl, one row per method and setup
    <!-- end -->
    <!-- verdicts: methods -->         what the same bundles find and reject at their thresholds
    <!-- end -->
    <!-- kinds: logical -->           accuracy by kind of defect, a row per set, method and setup
    <!-- end -->
    <!-- peers: peers -->              lines of ``benchmarks/peers/compare.py``: ours, theirs, and the difference
    <!-- end -->
    <!-- reports: nvidia_h200 -->      reports of ``edge-ad benchmark --json`` in benchmarks/reference/nvidia_h200/
    <!-- end -->
    <!-- costs: amd_epyc -->           of the same: what an image costs in int8, a row per method
    <!-- end -->
    <!-- ratios: amd_epyc -->          of the same: nine tiles in int8 over other precisions, and over one tile
    <!-- end -->

A file of lines is the ``results.jsonl`` of ``edge-ad experiment``: in an experiment's folder it is continued.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from edge_ad.benchmarks.report import BenchmarkReport
from edge_ad.bundle.manifest import ScoreMerge
from edge_ad.experiment.config import Variant
from edge_ad.experiment.record import Outcome, Record
from edge_ad.experiment.store import Store
from edge_ad.exporters.parity import rank_correlation
from edge_ad.methods import method_class
from edge_ad.methods.gradient import GradientModel
from edge_ad.setups import SETUPS

PAGES = tuple(Path(__file__).with_name(name) for name in ("results.md", "logical.md", "performance.md"))
LINES = Path(__file__).with_name("results")
REPORTS = Path(__file__).parents[1] / "benchmarks" / "reference"
SETS = {"bsdata": "BSData", "magnetic_tile": "magnetic tile", "casting512": "casting", "kolektorsdd": "KolektorSDD"}
KINDS = {"logical_anomalies": "logical", "structural_anomalies": "structural"}
RESAMPLES = 1000
BLOCK = re.compile(r"(<!-- (table|verdicts|kinds|peers|reports|costs|ratios): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BUNDLE = re.compile(
    r"(.+)-(sm256|ens9|ens9-image)-(int8|bf16|f32)"
)  # a report's name: method and backbone, setup, precision

Measure = Callable[[Outcome], float | None]


def auroc(outcome: Outcome) -> float | None:
    """Image AUROC, in per cent."""
    return 100 * outcome.image.auroc


def aupro(outcome: Outcome) -> float | None:
    """AUPRO, in per cent; None without masks."""
    return 100 * outcome.pixel.aupro if outcome.pixel else None


def table(records: Sequence[Record]) -> str:
    """A row per method and setup, setups in the paper's order."""
    header = ("method", "setup", "steps", "seeds", *SETS.values(), "mean", "int8: mean", "drop", "order")
    header += ("MB", "training, s")
    rows = [header, *(tuple(_cells(method, setup, of_row)) for method, setup, of_row in _rows(records))]
    if all(row[2] == "-" for row in rows[1:]):  # nothing here is trained by steps
        rows = [(*row[:2], *row[3:]) for row in rows]
    return "\n".join([_row(rows[0]), _row(["---", "---", *("---:" for _ in rows[0][2:])]), *map(_row, rows[1:])])


def recall(outcome: Outcome) -> float | None:
    """Defective images found at the threshold, in per cent."""
    return 100 * outcome.image.recall


def false_alarms(outcome: Outcome) -> float | None:
    """Good images rejected at the threshold, in per cent."""
    return 100 * outcome.image.confusion.false_positives / outcome.image.normal


def verdicts(records: Sequence[Record]) -> str:
    """What int8 bundles find, and reject of good parts, at their own thresholds; a row per method and setup."""
    lines = [_row(("method", "setup", *SETS.values())), _row(["---", "---", *("---:" for _ in SETS)])]
    for method, setup, of_row in _rows(records):
        cells = []
        for name in SETS:
            found = [values(of_row, name, Variant.INT8, each).values() for each in (recall, false_alarms)]
            cells.append(" / ".join(f"{fmean(each):.0f}" if each else "-" for each in found))
        lines.append(_row((method, setup, *cells)))
    return "\n".join(lines)


def kinds(records: Sequence[Record]) -> str:
    """As trained: image AUROC and AU-sPRO by kind of defect, and what the threshold finds of them and rejects."""
    header = ("set", "method", "setup", *(f"{kind}: AUROC / AU-sPRO" for kind in KINDS.values()))
    header += (f"found: {' / '.join(KINDS.values())}", "good rejected")
    lines = [_row(header), _row([*["---"] * 3, *("---:" for _ in header[3:])])]
    for name in dict.fromkeys(record.identity.dataset for record in records):
        of_set = [each for each in records if (each.identity.dataset, each.identity.precision) == (name, Variant.TORCH)]
        for method, setup, of_row in _rows(of_set):
            lines += [_row((name, method, setup, *_kind_cells(record))) for record in of_row]
    return "\n".join(lines)


def _kind_cells(record: Record) -> Iterable[str]:
    outcome = record.outcome
    if outcome is None or outcome.spro is None:
        return ["-"] * (len(KINDS) + 2)
    spro = outcome.spro.auspro_by_defect
    found = []
    for kind in KINDS:
        scores = [image.score for image in outcome.images if image.defect == kind]
        found.append(f"{100 * fmean(score >= outcome.image.threshold for score in scores):.0f}")
    accuracy = [f"{100 * outcome.auroc_by_defect[kind]:.1f} / {100 * spro[kind]:.1f}" for kind in KINDS]
    return *accuracy, " / ".join(found), f"{false_alarms(outcome):.0f}"


def peers(path: Path) -> str:
    """Of every method and set image AUROC and AUPRO of ours, of theirs, and the difference; then of the sets' mean.

    Seeds are averaged; a set counts for a method where both sides are there.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found: dict[tuple[str, ...], list[float]] = {}
    for line, measure in product(lines, ("auroc", "aupro")):
        if line[measure] is not None:
            key = (line["method"], line["data"], line["side"], measure)
            found.setdefault(key, []).append(100 * line[measure])
    rows = [_row(("method", "set", "ours", "anomalib", "difference")), _row(("---", "---", *["---:"] * 3))]
    for method in dict.fromkeys(line["method"] for line in lines):
        differences: dict[str, list[float]] = {"auroc": [], "aupro": []}
        for name, shown in SETS.items():
            both = {}
            for measure, values in differences.items():
                sides = [found.get((method, name, side, measure), []) for side in ("ours", "anomalib")]
                if all(sides):
                    both[measure] = [fmean(side) for side in sides]
                    values.append(both[measure][0] - both[measure][1])
            if not both:
                continue
            cells = [" / ".join(f"{each[side]:.1f}" for each in both.values()) for side in (0, 1)]
            rows.append(_row((method, shown, *cells, " / ".join(f"{a - b:+.1f}" for a, b in both.values()))))
        means = " / ".join(f"{fmean(values):+.1f}" for values in differences.values() if values)
        rows.append(_row((f"**{method}**", "**mean**", "", "", f"**{means}**")))
    return "\n".join(rows)


def reports(folder: Path) -> str:
    """What the benchmarks of ``folder`` found, a line each."""
    header = ("bundle", "ran in", "end to end, ms", "bare, ms", "ratio", "of the ceiling", "images/s", "load, ms")
    header += ("peak, MiB", "size, MiB")
    lines = [_row(header), _row(["---", "---", *("---:" for _ in header[2:])])]
    for path in sorted(folder.glob("*.json")):
        report = BenchmarkReport.from_json(json.loads(path.read_text(encoding="utf-8")))
        percent, batched, latency = report.achieved.ceiling_percent, report.throughput, report.latency
        memory = report.memory
        peak = memory.resident_peak_bytes if memory.device_bytes is None else memory.device_bytes
        lines.append(
            _row(
                (
                    path.stem,
                    ", ".join(dict.fromkeys(report.executed.values())),
                    f"{latency.end_to_end.median_ms:.2f}",
                    f"{latency.bare.median_ms:.2f}",
                    f"{latency.bare_ratio:.3f}",
                    "-" if percent is None else f"{percent:.0f} %",
                    f"{batched.images_per_s:.0f}" if batched else "-",
                    f"{report.load_ms:.0f}",
                    "-" if peak is None else f"{peak / 2**20:.0f}",
                    f"{report.bundle.size_bytes / 2**20:.0f}",
                )
            )
        )
    return "\n".join(lines)


def costs(folder: Path) -> str:
    """What an image of 512 px costs in int8 as one tile, as nine, and as nine with one extractor; a row per method."""
    setups = ("sm256", "ens9", "ens9-image")
    header = ("method", "one tile, ms", "nine, ms", "nine, extractor once, ms", "images/s, nine")
    header += ("bundle, MB: one / nine", "memory, MB: one / nine", "load, s: one / nine")
    lines = [_row(header), _row(["---", *("---:" for _ in header[1:])])]
    for method, found in _reports_by_method(folder).items():
        of_setups = [found.get((setup, "int8")) for setup in setups]
        ms = [each.latency.end_to_end.median_ms if each else None for each in of_setups]
        one_and_nine = [each for each in of_setups[:2] if each]
        peaks = [each.memory.resident_peak_bytes for each in one_and_nine]
        cells = ["-" if each is None else f"{each:.1f}" for each in ms]
        cells.append(f"{1000 / ms[1]:.0f}" if ms[1] else "-")
        cells.append(" / ".join(f"{each.bundle.size_bytes / 1e6:.0f}" for each in one_and_nine))
        cells.append(" / ".join("-" if peak is None else f"{peak / 1e6:.0f}" for peak in peaks))
        cells.append(" / ".join(f"{each.load_ms / 1000:.1f}" for each in one_and_nine))
        lines.append(_row((method, *cells)))
    return "\n".join(lines)


def ratios(folder: Path) -> str:
    """What nine tiles in int8 cost over the same in other precisions, and over one tile; a row per method."""
    by_method = _reports_by_method(folder)
    header = ("nine tiles, int8", "ms", "over bare", "over bf16", "over f32", "over nine times one tile")
    header += ("peak over one tile", "cold start, ms")
    lines = [_row(header), _row(["---", *("---:" for _ in header[1:])])]
    for method, found in by_method.items():
        nine, one = found.get(("ens9", "int8")), found.get(("sm256", "int8"))
        if not nine or not one:
            continue
        ms = {key: report.latency.end_to_end.median_ms for key, report in found.items()}
        peaks = [report.memory.resident_peak_bytes for report in (nine, one)]
        cells = [nine.latency.bare_ratio]
        cells += [ms["ens9", "int8"] / ms["ens9", precision] for precision in ("bf16", "f32")]
        cells.append(ms["ens9", "int8"] / (9 * ms["sm256", "int8"]))
        shown = [f"{ms['ens9', 'int8']:.1f}", *(f"{cell:.2f}" for cell in cells)]
        shown.append(f"{peaks[0] / peaks[1]:.1f}" if peaks[0] and peaks[1] else "-")
        lines.append(_row((method, *shown, f"{nine.cold_start_ms:.0f}")))
    return "\n".join(lines)


def _reports_by_method(folder: Path) -> dict[str, dict[tuple[str, str], BenchmarkReport]]:
    """By method and backbone, then by setup and precision: the reports that are named so."""
    by_method: dict[str, dict[tuple[str, str], BenchmarkReport]] = {}
    for path in sorted(folder.glob("*.json")):
        if name := BUNDLE.fullmatch(path.stem):
            report = BenchmarkReport.from_json(json.loads(path.read_text(encoding="utf-8")))
            by_method.setdefault(name[1], {})[name[2], name[3]] = report
    return by_method


def _rows(records: Sequence[Record]) -> Iterable[tuple[str, str, list[Record]]]:
    """Methods and setups, the latter in the paper's order and others behind them, with their records.

    Another merge of tiles' scores than the mean stands behind the setup, one of several backbones behind the method.
    Of a single tile every merge is the same, and has one row.
    """
    places = {setup: place for place, setup in enumerate(SETUPS)}
    rows: dict[tuple[str, str, int, str, ScoreMerge], list[Record]] = {}
    for record in records:
        known = record.identity
        if known.setup in SETUPS and len(SETUPS[known.setup].grid) == 1 and known.score_merge is not ScoreMerge.MEAN:
            continue
        place = places.get(known.setup, len(places))
        rows.setdefault((known.method, known.backbone, place, known.setup, known.score_merge), []).append(record)
    several = len({record.identity.backbone for record in records}) > 1
    for key in sorted(rows, key=lambda row: (*row[:4], row[4] is not ScoreMerge.MEAN)):
        method, backbone, _, setup, merge = key
        of_backbone = f"{method}, {backbone}" if several else method
        yield of_backbone, setup if merge is ScoreMerge.MEAN else f"{setup}, {merge}", rows[key]


def values(records: Sequence[Record], name: str, variant: Variant, measure: Measure) -> dict[int, float]:
    """By seed, of one set and precision."""
    found = {}
    for record in records:
        identity = record.identity
        if record.outcome and (identity.dataset, identity.precision) == (name, variant):
            value = measure(record.outcome)
            if value is not None:
                found[identity.seed] = value
    return found


def _cells(method: str, setup: str, records: Sequence[Record]) -> Iterable[str]:
    def over_sets(variant: Variant, measure: Measure) -> str:
        by_set = [found for name in SETS if (found := values(records, name, variant, measure))]
        wanted = len(SETS) if measure is auroc else len(SETS) - 1  # one has no masks
        if len(by_set) != wanted or not (everywhere := set.intersection(*map(set, by_set))):
            return "-"
        return f"{fmean(fmean(found[seed] for found in by_set) for seed in everywhere):.1f}"

    def drop() -> str:
        by_set = [_drops([record for record in records if record.identity.dataset == name]) for name in SETS]
        if not all(len(each) for each in by_set):
            return "-"
        drawn = np.mean([each.mean(0) for each in by_set], axis=0)
        low, high = np.quantile(drawn[1:], [0.025, 0.975])
        return f"{drawn[0]:+.1f} ({low:+.1f} to {high:+.1f})"

    def order() -> str:
        pairs = [_pairs([record for record in records if record.identity.dataset == name]) for name in SETS]
        return f"{fmean(fmean(_order(*pair) for pair in of_set) for of_set in pairs):.3f}" if all(pairs) else "-"

    seeds = {record.identity.seed for record in records}
    outcomes = [record.outcome for record in records if record.outcome]
    sizes = [each.size_bytes / 1e6 for each in outcomes if each.size_bytes is not None]  # torch has no bundle
    seconds = [each.training_s for each in outcomes if each.training_s is not None]
    yield from (method, setup, _schedule(records), str(len(seeds)))
    for name in SETS:
        yield _pair(
            *(_spread(list(values(records, name, Variant.TORCH, measure).values())) for measure in (auroc, aupro))
        )
    for variant in (Variant.TORCH, Variant.INT8):
        yield _pair(over_sets(variant, auroc), over_sets(variant, aupro))
    yield drop()
    yield order()
    for measured in (sizes, seconds):
        yield f"{fmean(measured):.0f}" if measured else "-"


def _schedule(records: Sequence[Record]) -> str:
    """Steps of how many tiles each, where a method is trained by steps."""
    method = method_class(records[0].identity.method)
    if not issubclass(method, GradientModel):
        return "-"
    found = set()
    for given in (record.settings["parameters"] for record in records):
        preset = method.schedules[given.get("schedule", method.default_schedule)]
        steps = given.get("steps", preset.steps)
        found.add(f"{steps or f'{preset.epochs} epochs'} x {given.get('batch_size', preset.batch_size)}")
    return ", ".join(sorted(found))


def _drops(records: Sequence[Record]) -> NDArray[np.float64]:
    """Points of image AUROC lost by int8, of one set: (seeds, 1 + `RESAMPLES`).

    First as measured, then with the normal and the defective images drawn anew, the same ones on both sides.
    """
    return np.array([_drop(trained, quantised) for trained, quantised in _pairs(records)])


def _order(trained: Record, quantised: Record) -> float:
    """Spearman's correlation of the test images' scores as trained and in int8."""
    assert trained.outcome
    assert quantised.outcome
    scores = [np.array([image.score for image in outcome.images]) for outcome in (trained.outcome, quantised.outcome)]
    return rank_correlation(*scores)


def _pairs(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Of one set: as trained and in int8, by seed."""
    by_seed: dict[int, dict[Variant, Record]] = {}
    for record in records:
        if record.outcome:
            by_seed.setdefault(record.identity.seed, {})[record.identity.precision] = record
    both = [each for each in by_seed.values() if {Variant.TORCH, Variant.INT8} <= each.keys()]
    return [(each[Variant.TORCH], each[Variant.INT8]) for each in both]


def _drop(trained: Record, quantised: Record) -> NDArray[np.float64]:
    before, after = _wins(trained), _wins(quantised)
    rng = np.random.default_rng(list(SETS).index(trained.identity.dataset))  # sets are drawn apart
    counts = [np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)]) for n in before.shape]
    lost: NDArray[np.float64] = np.einsum("ri,ij,rj->r", counts[0], before - after, counts[1], optimize=True)
    return 100 * lost / before.size


def _wins(record: Record) -> NDArray[np.float64]:
    """Of every defective image over every normal one: 1, or a half where they are even. The mean is the AUROC."""
    assert record.outcome
    defective, normal = (
        np.array([image.score for image in record.outcome.images if image.label == label]) for label in (1, 0)
    )
    difference = defective[:, None] - normal
    wins: NDArray[np.float64] = (difference > 0) + (difference == 0) / 2
    return wins


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.1f}" + (f"±{stdev(values):.1f}" if len(values) > 1 else "")


def _pair(image: str, pixel: str) -> str:
    return image if pixel == "-" else f"{image} / {pixel}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def render(page: str) -> str:
    """``page`` with its tables anew."""

    def block(found: re.Match[str]) -> str:
        kind, name = found[2], found[3]
        if kind in ("reports", "costs", "ratios"):
            written = {"reports": reports, "costs": costs, "ratios": ratios}[kind](REPORTS / name)
        elif kind == "peers":
            written = peers(LINES / f"{name}.jsonl")
        else:
            of_kind = {"table": table, "verdicts": verdicts, "kinds": kinds}[kind]
            written = of_kind(list(Store(LINES / f"{name}.jsonl").read().values()))
        return f"{found[1]}{written}\n{found[4]}"

    return BLOCK.sub(block, page)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
