"""The papers' tables from an experiment's lines. All cells are text.

Rows are categories and their mean, columns method x setup; figures are percent, mean ± sample standard deviation over
seeds. A metric that is not there (pixel metrics of a set without masks) is "-" and enters no mean.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from edge_ad.experiment.config import Variant
from edge_ad.experiment.means import Column, Row, Spread, Values, column_of, row_of
from edge_ad.experiment.record import Outcome, Record

NOTHING = "-"
Group = tuple[str, str, str]  # backbone, score merge, precision


class Table(NamedTuple):
    """Rows under headers, and what they mean."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def image_auroc(outcome: Outcome) -> float | None:
    """Image AUROC."""
    return outcome.image.auroc


def aupro(outcome: Outcome) -> float | None:
    """AUPRO; None without masks."""
    return outcome.pixel.aupro if outcome.pixel else None


def tables(records: Sequence[Record]) -> list[Table]:
    """Every table, accuracy first; lines that failed show as gaps."""
    groups = groups_of(records)
    found = [accuracy_table(group, records) for group in groups]
    for group in groups:
        backbone, merge, precision = group
        if precision != Variant.TORCH and (backbone, merge, Variant.TORCH) in groups:
            found.append(drop_table(group, records))
    return [*found, threshold_table(records), cost_table(records)]


def groups_of(records: Sequence[Record]) -> dict[Group, list[Record]]:
    """Lines by backbone, score merge and precision, in the order in which they come."""
    groups: dict[Group, list[Record]] = {}
    for record in records:
        identity = record.identity
        groups.setdefault((identity.backbone, identity.score_merge, identity.precision), []).append(record)
    return groups


def first_merges(records: Sequence[Record]) -> dict[Group, list[Record]]:
    """Groups of the first score merge only: all merges cost the same."""
    groups = groups_of(records)
    first = next(iter(groups), ("", "", ""))[1]
    return {group: lines for group, lines in groups.items() if group[1] == first}


def accuracy_table(group: Group, records: Sequence[Record]) -> Table:
    """Image AUROC / AUPRO of one group of all ``records``."""
    lines = groups_of(records)[group]
    detection, localisation = (Values.of(lines, metric, records) for metric in (image_auroc, aupro))
    return Table(
        f"Image AUROC / AUPRO, {_name(group)}",
        *_by_category(
            lines,
            lambda row, column: _pair(detection.cell(row, column), localisation.cell(row, column)),
            lambda column: _pair(detection.mean(column), localisation.mean(column)),
        ),
        "Percent, mean ± standard deviation over seeds. Means over categories leave out those that have no masks, and "
        "are there only for columns that have all the others.",
    )


def drop_table(group: Group, records: Sequence[Record]) -> Table:
    """What a bundle's accuracy is above (+) or below (-) that of the trained model."""
    groups = groups_of(records)
    lines, trained = groups[group], groups[(group[0], group[1], Variant.TORCH)]
    detection, localisation = (
        Values.of(lines, metric, records).minus(Values.of(trained, metric, records)) for metric in (image_auroc, aupro)
    )
    return Table(
        f"Change of image AUROC / AUPRO against torch, {_name(group)}",
        *_by_category(
            lines,
            lambda row, column: _pair(detection.cell(row, column), localisation.cell(row, column), sign=True),
            lambda column: _pair(detection.mean(column), localisation.mean(column), sign=True),
        ),
        "Points, seed by seed; negative: the bundle is worse.",
    )


def threshold_table(records: Sequence[Record]) -> Table:
    """F1, precision and recall at the threshold fitted on held-out normal images, beside the oracle's F1."""
    headers = ("backbone", "method", "setup", "precision", "merge", "F1", "precision at it", "recall", "F1-max", "AUPR")
    metrics: tuple[Callable[[Outcome], float | None], ...] = (
        lambda outcome: outcome.image.f1,
        lambda outcome: outcome.image.precision,
        lambda outcome: outcome.image.recall,
        lambda outcome: outcome.image.f1_max,
        lambda outcome: outcome.image.aupr,
    )
    rows = []
    for (backbone, merge, precision), lines in groups_of(records).items():
        values = [Values.of(lines, metric, records) for metric in metrics]
        for column in _columns(lines):
            figures = (_percent(each.mean(column)) for each in values)
            rows.append((backbone, *column, precision, merge, *figures))
    return Table(
        "At the threshold",
        headers,
        tuple(rows),
        "Percent, means over categories. F1-max chooses its threshold on the test images themselves.",
    )


def cost_table(records: Sequence[Record]) -> Table:
    """Training, size and speed; score merges cost the same, so the first one stands for all."""
    headers = (
        "backbone",
        "method",
        "setup",
        "precision",
        "training s",
        "parameters M",
        "bundle MB",
        "scoring ms",
        "latency ms",
        "bare ratio",
        "images/s",
        "peak MiB",
    )
    rows = []
    for (backbone, _, precision), lines in first_merges(records).items():
        for column in _columns(lines):
            outcomes = [line.outcome for line in lines if line.outcome and column_of(line.identity) == column]
            rows.append((backbone, *column, precision, *_costs(outcomes)))
    return Table(
        "Cost",
        headers,
        tuple(rows),
        "Means over categories and seeds. Latency, throughput and peak memory: edge-ad benchmark in a process of its "
        "own, first seed. Scoring: median time of one test image in this process. MB are 10^6, MiB 2^20 bytes.",
    )


def to_csv(records: Sequence[Record]) -> str:
    """One line per record with every figure, and the error where there is no outcome."""
    text = io.StringIO()
    rows = [flat(record) for record in records]
    headers = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, headers, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(record: Record) -> dict[str, object]:
    """A record's figures under plain names."""
    identity, outcome, failure = record.identity, record.outcome, record.failure
    row: dict[str, object] = {key: getattr(identity, key) for key in identity.__dataclass_fields__}
    row["error"] = failure.error if failure else ""
    if outcome is None:
        return row
    image, pixel, benchmark = outcome.image, outcome.pixel, outcome.benchmark
    names = ("auroc", "aupr", "f1_max", "threshold", "f1", "precision", "recall", "normal", "anomalous")
    row |= {f"image_{name}": getattr(image, name) for name in names}
    row |= {f"pixel_{name}": getattr(pixel, name) if pixel else "" for name in ("auroc", "aupr", "f1_max", "aupro")}
    row |= {
        "lost_masks": outcome.lost_masks,
        "training_s": outcome.training_s,
        "parameters": outcome.parameters,
        "size_bytes": outcome.size_bytes,
        "evaluation_ms": outcome.evaluation_ms,
        "executed": outcome.executed,
    }
    if benchmark:
        row |= {
            "latency_mean_ms": benchmark.latency_mean_ms,
            "latency_median_ms": benchmark.latency_median_ms,
            "bare_ratio": benchmark.bare_ratio,
            "throughput_images_per_s": benchmark.throughput_images_per_s,
            "resident_peak_bytes": benchmark.resident_peak_bytes,
        }
    return {key: "" if value is None else value for key, value in row.items()}


def _by_category(
    records: Sequence[Record],
    cell: Callable[[Row, Column], str],
    mean: Callable[[Column], str],
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headers and rows."""
    columns = _columns(records)
    rows = [
        ("/".join(dict.fromkeys(row)), *(cell(row, column) for column in columns))
        for row in dict.fromkeys(row_of(record.identity) for record in records)
    ]
    headers = ("category", *(" ".join(column) for column in columns))
    return headers, (*rows, ("mean", *(mean(column) for column in columns)))


def _columns(records: Sequence[Record]) -> tuple[Column, ...]:
    return tuple(dict.fromkeys(column_of(record.identity) for record in records))


def _costs(outcomes: Sequence[Outcome]) -> Iterator[str]:
    benchmarks = [outcome.benchmark for outcome in outcomes if outcome.benchmark]
    yield _mean([outcome.training_s for outcome in outcomes], 1, 1)
    yield _mean([outcome.parameters for outcome in outcomes], 1e-6, 2)
    yield _mean([outcome.size_bytes for outcome in outcomes], 1e-6, 1)
    yield _mean([outcome.evaluation_ms for outcome in outcomes], 1, 1)
    yield _mean([each.latency_mean_ms for each in benchmarks], 1, 2)
    yield _mean([each.bare_ratio for each in benchmarks], 1, 3)
    yield _mean([each.throughput_images_per_s for each in benchmarks], 1, 1)
    yield _mean([each.resident_peak_bytes for each in benchmarks], 2**-20, 0)


def _mean(values: Sequence[float | None], scale: float, digits: int) -> str:
    spread = Spread.of([value for value in values if value is not None])
    return f"{spread.mean * scale:.{digits}f}" if spread else NOTHING


def _percent(spread: Spread | None) -> str:
    return spread.text(100) if spread else NOTHING


def _pair(first: Spread | None, second: Spread | None, sign: bool = False) -> str:
    texts = [_percent(spread) for spread in (first, second)]
    if sign:
        texts = [f"+{text}" if text[0].isdigit() else text for text in texts]
    return NOTHING if texts == [NOTHING, NOTHING] else " / ".join(texts)


def _name(group: Group) -> str:
    backbone, merge, precision = group
    return f"{precision}, {backbone}, {merge} of tile scores"
