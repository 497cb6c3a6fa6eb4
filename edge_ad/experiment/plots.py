"""Figures: image AUROC by size of the defect and against latency, and the losses of a training."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_ad.evaluation.image_metrics import image_auroc
from edge_ad.experiment.config import Variant
from edge_ad.experiment.means import Values, column_of
from edge_ad.experiment.record import ImageScore, Outcome, Record
from edge_ad.experiment.tables import first_merges, groups_of
from edge_ad.experiment.tables import image_auroc as auroc_of
from edge_ad.methods.tile_model import Losses

# Upper limits of the bins, fractions of the image; the last bin is open
AREA_LIMITS = (0.001, 0.003, 0.01, 0.03)
BIN_NAMES = ("< 0.1 %", "0.1-0.3 %", "0.3-1 %", "1-3 %", "> 3 %")

_MARKERS = dict(zip(Variant, "osv^", strict=True))


def plots(records: Sequence[Record]) -> dict[str, tuple[bytes, str]]:
    """Name to (PNG, caption); a figure without a point is left out."""
    figures = {}
    if (sizes := defect_sizes(records))[1]:
        figures["auroc_by_defect_size"] = (
            _defect_size_png(*sizes),
            f"Image AUROC by defect size, {sizes[0]}: anomalous images of a size against all normal ones of their "
            "category; mean over categories and seeds.",
        )
    if points := latencies(records):
        figures["auroc_against_latency"] = (
            _latency_png(points),
            "Mean image AUROC against the benchmark's mean latency at batch 1.",
        )
    return figures


def losses_png(losses: Mapping[str, Sequence[Losses]]) -> bytes:
    """What trainings saw of their loss, tile model by tile model, stages one after the other; the kept steps as dots.

    Args:
        losses: stages by name of the tile model, at least one.
    """
    return _png(losses_figure(losses))


def losses_figure(losses: Mapping[str, Sequence[Losses]]) -> Any:
    """See `losses_png`."""
    figure, axes = _figure((8, 4.4))
    for number, (name, stages) in enumerate(losses.items()):
        color, start = f"C{number % 10}", 0
        for stage in stages:
            steps = start + np.arange(1, len(stage.training) + 1)
            axes.plot(steps, stage.training, color=color, linewidth=0.8, alpha=0.5, label=name)
            if stage.validation:
                at, values = np.array(stage.validation).T
                axes.plot(start + at, values, color=color, linewidth=1.6)
                axes.plot(start + stage.kept_step, values[list(at).index(stage.kept_step)], "o", color=color)
            start += len(stage.training)
    if min(value for stages in losses.values() for stage in stages for value in stage.training) > 0:
        axes.set_yscale("log")
    _style(axes, "training step", "loss; held-out images: thick, kept: dot")
    return figure


def auroc_by_area(images: Sequence[ImageScore]) -> list[tuple[float | None, int]]:
    """Per bin of `AREA_LIMITS` the AUROC of its anomalous images against all normal ones, and their number.

    None where a bin has no image, or there is no normal one. Anomalous images without a mask belong to no bin.
    """
    scores = np.array([image.score for image in images])
    normal = np.array([image.label == 0 for image in images], bool)
    areas = np.array(
        [np.nan if image.defect_area is None or not image.label else image.defect_area for image in images]
    )
    bins = np.where(np.isnan(areas), -1, np.searchsorted(AREA_LIMITS, areas, side="right"))
    found: list[tuple[float | None, int]] = []
    for index in range(len(BIN_NAMES)):
        inside = bins == index
        chosen = normal | inside
        defined = inside.any() and normal.any()
        auroc = image_auroc(scores[chosen], inside[chosen]) if defined else None
        found.append((auroc, int(inside.sum())))
    return found


def defect_sizes(records: Sequence[Record]) -> tuple[str, dict[str, list[float | None]], list[int]]:
    """Of the first backbone, merge and precision: its name, method and setup to mean AUROC per bin, and counts.

    Counts are anomalous images over all categories, once.
    """
    measured = [record for record in records if record.outcome]
    for (backbone, merge, precision), lines in groups_of(measured).items():
        curves: dict[str, list[list[float]]] = {}
        counts: dict[str, list[int]] = {}
        for line in lines:
            assert line.outcome is not None
            binned = auroc_by_area(line.outcome.images)
            curve = curves.setdefault(" ".join(column_of(line.identity)), [[] for _ in BIN_NAMES])
            for values, (auroc, _) in zip(curve, binned, strict=True):
                values += [] if auroc is None else [auroc]
            counts[f"{line.identity.dataset}/{line.identity.category}"] = [count for _, count in binned]
        means = {
            name: [float(np.mean(values)) if values else None for values in curve] for name, curve in curves.items()
        }
        totals = [sum(column) for column in zip(*counts.values(), strict=True)]
        if any(totals):
            return f"{precision}, {backbone}, {merge}", means, totals
    return "", {}, []


def latencies(records: Sequence[Record]) -> list[tuple[str, Variant, float, float]]:
    """(name, precision, mean latency ms, mean AUROC) of what was benchmarked, by the first score merge."""
    points = []
    several = len({record.identity.backbone for record in records}) > 1
    for (backbone, _, precision), lines in first_merges(records).items():
        auroc, latency = Values.of(lines, auroc_of, records), Values.of(lines, _latency_ms, records)
        for column in dict.fromkeys(column_of(line.identity) for line in lines):
            mean_auroc, mean_latency = auroc.mean(column), latency.mean(column)
            if mean_auroc and mean_latency:
                name = " ".join((*column, backbone) if several else column)
                points.append((name, Variant(precision), mean_latency.mean, mean_auroc.mean))
    return points


def _latency_ms(outcome: Outcome) -> float | None:
    return outcome.benchmark.latency_mean_ms if outcome.benchmark else None


def _defect_size_png(_: str, curves: dict[str, list[float | None]], counts: list[int]) -> bytes:
    figure, axes = _figure((8, 4.4))
    places = np.arange(len(BIN_NAMES))
    for name, curve in curves.items():
        values = np.array([np.nan if value is None else value * 100 for value in curve])
        axes.plot(places, values, marker="o", markersize=5, linewidth=1.6, label=name)
    axes.set_xticks(places, [f"{name}\n{count} images" for name, count in zip(BIN_NAMES, counts, strict=True)])
    _style(axes, "defect area, part of the image", "image AUROC, %")
    return _png(figure)


def _latency_png(points: Sequence[tuple[str, Variant, float, float]]) -> bytes:
    figure, axes = _figure((8, 4.8))
    columns = list(dict.fromkeys(name for name, *_ in points))
    for name, precision, latency_ms, auroc in points:
        color = f"C{columns.index(name) % 10}"
        axes.plot(latency_ms, auroc * 100, _MARKERS[precision], color=color, label=f"{name} {precision}")
    axes.set_xscale("log")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter("{x:g}")
    _style(axes, "latency, ms (log)", "image AUROC, %")
    return _png(figure)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _style(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()
