"""The papers' tables from an experiment's lines. All cells are text.

Rows are categories and their mean, columns method x setup; figures are percent, mean ± sample standard deviation over
seeds. A metric that is not there (pixel metrics of a set without masks) is "-" and enters no mean.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from edge_ad.evaluation.evaluate import MEAN_OF_KINDS
from edge_ad.experiment.config import Variant
from edge_ad.experiment.means import Column, Metric, Row, Spread, Values, column_of, row_of
from edge_ad.experiment.record import Outcome, Record

NOTHING = "-"
_SPRO_NOTE = " AU-sPRO is the mean over kinds of defect."
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


def auspro(outcome: Outcome) -> float | None:
    """AU-sPRO, the mean over kinds of defect; None where regions have no saturation areas."""
    return outcome.spro.auspro if outcome.spro else None


def tables(records: Sequence[Record]) -> list[Table]:
    """Every table, accuracy first; lines that failed show as gaps."""
    groups = groups_of(records)
    kinds = [kind for kind in kinds_of(records).values() if kind]
    found = []
    for group in groups:
        found += [accuracy_table(group, records), *([kind_table(group, records)] if kinds else [])]
    for group in groups:
        backbone, merge, precision = group
        if precision != Variant.TORCH and (backbone, merge, Variant.TORCH) in groups:
            found += [drop_table(group, records), *([kind_drop_table(group, records)] if kinds else [])]
    return [*found, threshold_table(records), cost_table(records)]


def kinds_of(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """By data set the kinds of defect its tables are split by: logical and structural ones, say.

    They are those that all its categories have, two or more: other sets have kinds of their own in every category. A
    set of one category is split only where its AU-sPRO is.
    """
    by_category: dict[str, dict[str, list[str]]] = {}
    split = set()
    for record in records:
        if record.outcome:
            categories = by_category.setdefault(record.identity.dataset, {})
            categories[record.identity.category] = list(record.outcome.auroc_by_defect)
            split |= {record.identity.dataset} if record.outcome.spro else set()
    found = {}
    for dataset, categories in by_category.items():
        first, *others = categories.values()
        shared = tuple(kind for kind in first if all(kind in other for other in others))
        found[dataset] = shared if len(shared) > 1 and (others or dataset in split) else ()
    return found


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
    """Image AUROC / AUPRO of one group of all ``records``, and AU-sPRO where a data set has it."""
    lines = groups_of(records)[group]
    names, metrics = _accuracies(records)
    figures = [Values.of(lines, metric, records) for metric in metrics]
    return Table(
        f"{names}, {_name(group)}",
        *_by_category(
            lines,
            lambda row, column: _joined([each.cell(row, column) for each in figures]),
            lambda column: _joined([each.mean(column) for each in figures]),
        ),
        "Percent, mean ± standard deviation over seeds. Means over categories leave out those that have no masks, and "
        "are there only for columns that have all the others." + (_SPRO_NOTE if len(metrics) > 2 else ""),
    )


def drop_table(group: Group, records: Sequence[Record]) -> Table:
    """What a bundle's accuracy is above (+) or below (-) that of the trained model."""
    lines, trained = _against_torch(group, records)
    names, metrics = _accuracies(records)
    figures = [Values.of(lines, metric, records).minus(Values.of(trained, metric, records)) for metric in metrics]
    return Table(
        f"Change of {_lowered(names)} against torch, {_name(group)}",
        *_by_category(
            lines,
            lambda row, column: _joined([each.cell(row, column) for each in figures], sign=True),
            lambda column: _joined([each.mean(column) for each in figures], sign=True),
        ),
        "Points, seed by seed; negative: the bundle is worse.",
    )


def kind_table(group: Group, records: Sequence[Record]) -> Table:
    """The figures of `accuracy_table` by kind of defect: each against all normal images."""
    lines = groups_of(records)[group]
    names, _ = _accuracies(records)
    return Table(
        f"{names} by kind of defect, {_name(group)}",
        *_by_kind(lines, records, lambda metric, all_lines: Values.of(lines, metric, all_lines)),
        "Percent. A kind is measured on its own images and all normal ones. The mean over kinds gives each the same "
        "weight, however many images it has: sets with logical anomalies are reported so.",
    )


def kind_drop_table(group: Group, records: Sequence[Record]) -> Table:
    """The figures of `drop_table` by kind of defect."""
    lines, trained = _against_torch(group, records)
    names, _ = _accuracies(records)
    return Table(
        f"Change of {_lowered(names)} by kind of defect against torch, {_name(group)}",
        *_by_kind(
            lines,
            records,
            lambda metric, all_lines: Values.of(lines, metric, all_lines).minus(Values.of(trained, metric, all_lines)),
            sign=True,
        ),
        "Points, seed by seed; negative: the bundle is worse.",
    )


def threshold_table(records: Sequence[Record]) -> Table:
    """F1, precision and recall at the threshold fitted on held-out normal images, beside the oracle's F1.

    Recall also by kind of defect, where a data set is split by kind.
    """
    kinds = list(dict.fromkeys(kind for split in kinds_of(records).values() for kind in split))
    headers = ("backbone", "method", "setup", "precision", "merge", "F1", "precision at it", "recall", "F1-max", "AUPR")
    metrics: tuple[Metric, ...] = (
        lambda outcome: outcome.image.f1,
        lambda outcome: outcome.image.precision,
        lambda outcome: outcome.image.recall,
        lambda outcome: outcome.image.f1_max,
        lambda outcome: outcome.image.aupr,
        *(partial(recall_of_kind, kind=kind) for kind in kinds),
    )
    rows = []
    for (backbone, merge, precision), lines in groups_of(records).items():
        values = [Values.of(lines, metric, records) for metric in metrics]
        for column in _columns(lines):
            figures = (_percent(each.mean(column)) for each in values)
            rows.append((backbone, *column, precision, merge, *figures))
    return Table(
        "At the threshold",
        (*headers, *(f"recall, {kind}" for kind in kinds)),
        tuple(rows),
        "Percent, means over categories. F1-max chooses its threshold on the test images themselves.",
    )


def recall_of_kind(outcome: Outcome, kind: str) -> float | None:
    """Part of the anomalous images of a kind found at the threshold; None where there are none."""
    scores = [image.score for image in outcome.images if image.label and image.defect == kind]
    return sum(score >= outcome.image.threshold for score in scores) / len(scores) if scores else None


def cost_table(records: Sequence[Record]) -> Table:
    """Training, size and speed; score merges cost the same, so the first one stands for all."""
    headers = (
        "backbone",
        "method",
        "setup",
        "precision",
        "training s",
        "kept step",
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
        "own, first seed. Scoring: median time of one test image in this process; of torch, an eighth of eight "
        "at once. MB are 10^6, MiB 2^20 bytes.",
    )


def to_csv(records: Sequence[Record]) -> str:
    """One line per record with every figure, and the error where there is no outcome."""
    text = io.StringIO()
    kinds = kinds_of(records)
    rows = [flat(record, kinds.get(record.identity.dataset, ())) for record in records]
    headers = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, headers, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(record: Record, kinds: Sequence[str] = ()) -> dict[str, object]:
    """A record's figures under plain names, those of ``kinds`` of defect too."""
    identity, outcome, failure = record.identity, record.outcome, record.failure
    row: dict[str, object] = {key: getattr(identity, key) for key in identity.__dataclass_fields__}
    row["error"] = failure.error if failure else ""
    if outcome is None:
        return row
    image, pixel, benchmark = outcome.image, outcome.pixel, outcome.benchmark
    names = ("auroc", "aupr", "f1_max", "threshold", "f1", "precision", "recall", "normal", "anomalous")
    row |= {f"image_{name}": getattr(image, name) for name in names}
    row |= {f"pixel_{name}": getattr(pixel, name) if pixel else "" for name in ("auroc", "aupr", "f1_max", "aupro")}
    row["auspro"] = auspro(outcome)
    for kind in kinds:
        row |= {
            f"image_auroc_{kind}": outcome.auroc_by_defect.get(kind),
            f"pixel_aupro_{kind}": (outcome.aupro_by_defect or {}).get(kind),
            f"auspro_{kind}": outcome.spro.auspro_by_defect.get(kind) if outcome.spro else None,
            f"image_recall_{kind}": recall_of_kind(outcome, kind),
        }
    row |= {
        "lost_masks": outcome.lost_masks,
        "training_s": outcome.training_s,
        "kept_step": outcome.kept_step,
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


def _by_kind(
    records: Sequence[Record],
    everything: Sequence[Record],
    values: Callable[[Metric, Sequence[Record]], Values],
    sign: bool = False,
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headers and rows: every category and the mean over categories by kind, and the means over kinds.

    Args:
        values: of a metric in the lines at hand, given the lines that decide which rows there are.
    """
    columns, found = _columns(records), []
    several = len([split for split in kinds_of(everything).values() if split]) > 1
    for dataset, kinds in kinds_of(everything).items():
        if not kinds:
            continue
        ours = [record for record in everything if record.identity.dataset == dataset]
        rows = dict.fromkeys(row_of(record.identity) for record in records if record.identity.dataset == dataset)
        name = f"mean of {dataset}" if several else "mean"
        for kind in (*kinds, None):
            figures = [values(metric, ours) for metric in _accuracies_of_kind(everything, kind, kinds)]
            label = kind or MEAN_OF_KINDS
            for row in rows:
                cells = (_joined([each.cell(row, column) for each in figures], sign) for column in columns)
                found.append((f"{'/'.join(dict.fromkeys(row))}, {label}", *cells))
            if len(rows) > 1:
                means = (_joined([each.mean(column) for each in figures], sign) for column in columns)
                found.append((f"{name}, {label}", *means))
    return ("category, kind", *(" ".join(column) for column in columns)), tuple(found)


def _accuracies(records: Sequence[Record]) -> tuple[str, list[Metric]]:
    """What cells of accuracy hold, and its metrics: AU-sPRO where any line has it."""
    if any(record.outcome and record.outcome.spro for record in records):
        return "Image AUROC / AUPRO / AU-sPRO", [image_auroc, aupro, auspro]
    return "Image AUROC / AUPRO", [image_auroc, aupro]


def _accuracies_of_kind(records: Sequence[Record], kind: str | None, kinds: Sequence[str]) -> list[Metric]:
    """The metrics of `_accuracies` of one kind; the mean over ``kinds`` where it is None."""
    of_outcome: list[Callable[[Outcome], Mapping[str, float]]] = [
        lambda outcome: outcome.auroc_by_defect,
        lambda outcome: outcome.aupro_by_defect or {},
        lambda outcome: outcome.spro.auspro_by_defect if outcome.spro else {},
    ]
    chosen = (kind,) if kind is not None else tuple(kinds)

    def metric(figures: Callable[[Outcome], Mapping[str, float]]) -> Metric:
        def mean(outcome: Outcome) -> float | None:
            found = figures(outcome)
            return statistics.fmean(found[each] for each in chosen) if all(each in found for each in chosen) else None

        return mean

    return [metric(figures) for figures in of_outcome[: len(_accuracies(records)[1])]]


def _against_torch(group: Group, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Lines of a group, and those of the trained models they are compared with."""
    groups = groups_of(records)
    return groups[group], groups[(group[0], group[1], Variant.TORCH)]


def _lowered(names: str) -> str:
    return names[0].lower() + names[1:]


def _columns(records: Sequence[Record]) -> tuple[Column, ...]:
    return tuple(dict.fromkeys(column_of(record.identity) for record in records))


def _costs(outcomes: Sequence[Outcome]) -> Iterator[str]:
    benchmarks = [outcome.benchmark for outcome in outcomes if outcome.benchmark]
    yield _mean([outcome.training_s for outcome in outcomes], 1, 1)
    yield _mean([outcome.kept_step for outcome in outcomes], 1, 0)
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


def _joined(spreads: Sequence[Spread | None], sign: bool = False) -> str:
    texts = [_percent(spread) for spread in spreads]
    if sign:
        texts = [f"+{text}" if text[0].isdigit() else text for text in texts]
    return NOTHING if set(texts) == {NOTHING} else " / ".join(texts)


def _name(group: Group) -> str:
    backbone, merge, precision = group
    return f"{precision}, {backbone}, {merge} of tile scores"
