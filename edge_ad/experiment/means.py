"""Means and deviations of an experiment's lines, in the papers' sense: over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edge_ad.experiment.record import Identity, Outcome, Record

Metric = Callable[[Outcome], float | None]
Column = tuple[str, str]  # method, setup
Row = tuple[str, str]  # data set, category


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1); no deviation of a single value."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where there is no value.

        >>> Spread.of([1.0, 2.0, 3.0])
        Spread(mean=2.0, deviation=1.0, count=3)
        """
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def text(self, scale: float = 1.0, digits: int = 1) -> str:
        """``mean ± deviation``, times ``scale``.

        >>> Spread(0.98, 0.005, 3).text(100)
        '98.0 ± 0.5'
        """
        mean = f"{self.mean * scale:.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation * scale:.{digits}f}"


@dataclass(frozen=True)
class Values:
    """One metric over seeds, by row and column.

    Attributes:
        by_cell: values by (row, column), then by seed; cells without the metric are not there.
        rows: every row a mean must hold to be compared with others.
    """

    by_cell: Mapping[tuple[Row, Column], Mapping[int, float]]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, records: Iterable[Record], metric: Metric, everything: Iterable[Record]) -> Values:
        """From lines of one backbone, precision and merge.

        Args:
            everything: all lines of the experiment: what has the metric there is a row (a set without masks has no
                pixel metrics anywhere, a cell that failed is missing here alone).
        """
        found: dict[tuple[Row, Column], dict[int, float]] = {}
        for record in records:
            if (value := _value(record, metric)) is not None:
                cell = row_of(record.identity), column_of(record.identity)
                found.setdefault(cell, {})[record.identity.seed] = value
        rows = dict.fromkeys(row_of(record.identity) for record in everything if _value(record, metric) is not None)
        return cls(found, tuple(rows))

    def minus(self, other: Values) -> Values:
        """Differences, seed by seed, where both have a value."""
        differences = {}
        for cell, seeds in self.by_cell.items():
            others = other.by_cell.get(cell, {})
            if both := {seed: value - others[seed] for seed, value in seeds.items() if seed in others}:
                differences[cell] = both
        return Values(differences, self.rows)

    def cell(self, row: Row, column: Column) -> Spread | None:
        """Over the seeds of one cell."""
        return Spread.of(list(self.by_cell.get((row, column), {}).values()))

    def mean(self, column: Column) -> Spread | None:
        """Over seeds, of each seed's mean over rows; a seed that lacks a row does not count."""
        per_row = [self.by_cell.get((row, column), {}) for row in self.rows]
        seeds = [seed for seed in (per_row[0] if per_row else {}) if all(seed in values for values in per_row)]
        return Spread.of([statistics.fmean(values[seed] for values in per_row) for seed in seeds])


def row_of(identity: Identity) -> Row:
    """The row a line belongs to."""
    return identity.dataset, identity.category


def column_of(identity: Identity) -> Column:
    """The column a line belongs to."""
    return identity.method, identity.setup


def _value(record: Record, metric: Metric) -> float | None:
    return None if record.outcome is None else metric(record.outcome)
