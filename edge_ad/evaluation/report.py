"""An evaluation as JSON, markdown, and a figure of its curves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from edge_ad import atomic
from edge_ad.evaluation.evaluate import Evaluation
from edge_ad.records import to_plain
from edge_ad.tiling import format_size

SCHEMA_VERSION = 1
_POINTS = 400  # of a plotted curve


def to_json(evaluation: Evaluation, **about: Any) -> dict[str, Any]:
    """Plain values; ``about`` (what was evaluated) comes first."""
    return {
        "schema_version": SCHEMA_VERSION,
        **about,
        "image": to_plain(evaluation.image),
        "auroc_by_defect": evaluation.auroc_by_defect,
        "pixel": to_plain(evaluation.pixel),
        "metrics_size": list(evaluation.metrics_size),
        "ms_per_image": evaluation.ms_per_image,
    }


def to_markdown(evaluation: Evaluation, title: str) -> str:
    """Two tables: image level and pixel level."""
    image, pixel = evaluation.image, evaluation.pixel
    lines = [
        f"## {title}",
        "",
        f"{image.normal} normal and {image.anomalous} anomalous images, {evaluation.ms_per_image:.1f} ms per image.",
        "",
        "| image | AUROC | AUPR | F1-max | F1 | precision | recall | at threshold |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| all | {image.auroc:.4f} | {image.aupr:.4f} | {image.f1_max:.4f} | {image.f1:.4f} | {image.precision:.4f} | "
        f"{image.recall:.4f} | {image.threshold:.4g} |",
        *(f"| {kind} | {auroc:.4f} | | | | | | |" for kind, auroc in evaluation.auroc_by_defect.items()),
        "",
    ]
    if pixel is None:
        return "\n".join([*lines, "No masks: no pixel metrics.", ""])
    return "\n".join(
        [
            *lines,
            f"| pixel ({format_size(evaluation.metrics_size)}) | AUROC | AUPR | F1-max | AUPRO@{pixel.pro_limit:g} |",
            "| --- | ---: | ---: | ---: | ---: |",
            f"| {pixel.regions} regions, {pixel.connectivity}-connected | {pixel.auroc:.4f} | {pixel.aupr:.4f} | "
            f"{pixel.f1_max:.4f} | {pixel.aupro:.4f} |",
            "",
        ]
    )


def curves_png(evaluation: Evaluation, title: str) -> bytes:
    """ROC, precision-recall, PRO (where there are masks) and the score histogram in one figure."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    scores, labels, pixel = evaluation.predictions.scores, evaluation.labels, evaluation.pixel
    curves = evaluation.pixel_curves
    figure = Figure(figsize=(11, 3.2 if curves is None else 6), layout="constrained")
    axes = figure.subplots(1 if curves is None else 2, 3, squeeze=False)
    figure.suptitle(title, fontsize=11)
    image = evaluation.image

    fpr, tpr, _ = roc_curve(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    _line(axes[0, 0], fpr, tpr, f"image ROC, AUROC {image.auroc:.3f}", "false positive rate", "true positive rate")
    _line(axes[0, 1], recall, precision, f"image PR, AUPR {image.aupr:.3f}", "recall", "precision")
    bins = np.linspace(scores.min(), scores.max(), 30)
    for chosen, label, color in ((~labels, "normal", "#0072b2"), (labels, "anomalous", "#d55e00")):
        axes[0, 2].hist(scores[chosen], bins, label=label, color=color, alpha=0.65)
    axes[0, 2].axvline(image.threshold, color="#333333", linestyle="--", linewidth=1, label="threshold")
    axes[0, 2].set(title="image scores", xlabel="raw score", ylabel="images")
    axes[0, 2].legend(frameon=False, fontsize=8)
    if curves is not None and pixel is not None:
        fpr, tpr = _thin(curves.false_positive_rate), _thin(curves.true_positive_rate)
        _line(axes[1, 0], fpr, tpr, f"pixel ROC, AUROC {pixel.auroc:.3f}", "false positive rate", "true positive rate")
        _line(axes[1, 1], tpr, _thin(curves.precision), f"pixel PR, AUPR {pixel.aupr:.3f}", "recall", "precision")
        overlap = _thin(curves.region_overlap)
        _line(
            axes[1, 2],
            fpr,
            overlap,
            f"PRO, AUPRO@{pixel.pro_limit:g} {pixel.aupro:.3f}",
            "false positive rate",
            "overlap",
        )
        axes[1, 2].set_xlim(0, pixel.pro_limit)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def write_report(folder: Path, evaluation: Evaluation, title: str, **about: Any) -> None:
    """Write ``evaluation.json``, ``evaluation.md`` and ``curves.png`` into ``folder``."""
    atomic.write_json(folder / "evaluation.json", to_json(evaluation, **about))
    atomic.write_text(folder / "evaluation.md", to_markdown(evaluation, title))
    atomic.write_bytes(folder / "curves.png", curves_png(evaluation, title))


def _line(axis: Any, x: Any, y: Any, title: str, xlabel: str, ylabel: str) -> None:
    axis.plot(x, y, color="#0072b2", linewidth=1.6)
    axis.fill_between(x, y, color="#0072b2", alpha=0.08)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1.02))
    axis.title.set_fontsize(9)
    axis.grid(alpha=0.25)


def _thin(values: Any) -> Any:
    """At most `_POINTS` points, evenly spread over the curve's own, ends kept."""
    return values[np.unique(np.linspace(0, len(values) - 1, _POINTS).astype(int))]
