"""An evaluation as JSON, Markdown, a table of scores, and a figure of its curves."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from edge_ad import atomic
from edge_ad.evaluation.curve import Curve
from edge_ad.evaluation.evaluate import Evaluation
from edge_ad.records import to_plain
from edge_ad.tiling import format_size

SCHEMA_VERSION = 1

# Okabe and Ito's palette, told apart by colour-blind readers too
_BLUE, _VERMILION, _GREY = "#0072b2", "#d55e00", "#5f6b76"


def to_json(evaluation: Evaluation, **about: Any) -> dict[str, Any]:
    """Plain values; ``about`` (what was evaluated) comes first. ``pixel`` is null where there are no masks."""
    pixel = evaluation.pixel
    return {
        "schema_version": SCHEMA_VERSION,
        **about,
        "image": to_plain(evaluation.image),
        "auroc_by_defect": evaluation.auroc_by_defect,
        "pixel": None if pixel is None else {**to_plain(pixel.metrics), "lost_masks": pixel.lost_masks},
        "metrics_size": None if pixel is None else list(pixel.size),
        "image_size": list(evaluation.image_size),
        "ms_per_image": evaluation.predictions.ms_per_image,
    }


def to_markdown(evaluation: Evaluation, title: str) -> str:
    """Two tables: image level and pixel level."""
    image, pixel, confusion = evaluation.image, evaluation.pixel, evaluation.image.confusion
    lines = [
        f"## {title}",
        "",
        f"{image.normal} normal and {image.anomalous} anomalous images, run at {format_size(evaluation.image_size)}, "
        f"{evaluation.predictions.ms_per_image:.1f} ms per image.",
        "",
        "| image | AUROC | AUPR | F1-max | F1 | precision | recall | at threshold |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| all | {image.auroc:.4f} | {image.aupr:.4f} | {image.f1_max:.4f} | {image.f1:.4f} | {image.precision:.4f} | "
        f"{image.recall:.4f} | {image.threshold:.4g} |",
        *(f"| {kind} | {auroc:.4f} | | | | | | |" for kind, auroc in evaluation.auroc_by_defect.items()),
        "",
        f"At the threshold: {confusion.true_positives} of {image.anomalous} anomalous images found, "
        f"{confusion.false_positives} of {image.normal} normal ones rejected. F1-max chooses its threshold on these "
        "very images.",
        "",
    ]
    if pixel is None:
        return "\n".join([*lines, "No masks: no pixel metrics.", ""])
    metrics = pixel.metrics
    lines += [
        f"| pixel ({format_size(pixel.size)}) | AUROC | AUPR | F1-max | AUPRO@{metrics.pro_limit:g} |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| {metrics.regions} regions, {metrics.connectivity}-connected | {metrics.auroc:.4f} | {metrics.aupr:.4f} | "
        f"{metrics.f1_max:.4f} | {metrics.aupro:.4f} |",
        "",
    ]
    if pixel.lost_masks:
        lines += [
            f"{pixel.lost_masks} masks vanish at {format_size(pixel.size)} and are not counted: "
            "compare pixels at a larger --metrics-size.",
            "",
        ]
    return "\n".join(lines)


def to_csv(evaluation: Evaluation) -> str:
    """One line per image: file, kind of defect, label, raw score, and whether it is predicted anomalous."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "defect", "label", "score", "predicted"))
    for sample, score in zip(evaluation.samples, evaluation.predictions.scores.tolist(), strict=True):
        predicted = int(score >= evaluation.image.threshold)
        rows.writerow((sample.path.as_posix(), sample.defect, sample.label, repr(score), predicted))
    return text.getvalue()


def curves_json(evaluation: Evaluation) -> dict[str, dict[str, list[float]]]:
    """Every curve by name, as its ``x`` and ``y``, at most 512 points each."""
    image, pixel = evaluation.image_curves, evaluation.pixel
    curves = {"image_roc": image.roc, "image_precision_recall": image.precision_recall}
    if pixel is not None:
        curves["pixel_roc"] = pixel.curves.roc
        curves["pixel_precision_recall"] = pixel.curves.precision_recall
        curves["pixel_pro"] = pixel.curves.pro
    thinned = {name: curve.thinned() for name, curve in curves.items()}
    return {name: {"x": curve.x.tolist(), "y": curve.y.tolist()} for name, curve in thinned.items()}


def curves_png(evaluation: Evaluation, title: str) -> bytes:
    """ROC, precision-recall, PRO (where there are masks) and the score histogram in one figure."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # no pyplot: no global state, no display
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    image, curves, pixel = evaluation.image, evaluation.image_curves, evaluation.pixel
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left"}):
        figure = Figure(figsize=(11, 3.6 if pixel is None else 6.6), layout=layout)
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.012, ha="left")
        axes = figure.subplots(1 if pixel is None else 2, 3, squeeze=False)
        _roc(axes[0, 0], curves.roc, f"Image ROC, AUROC {image.auroc:.3f}")
        _precision_recall(axes[0, 1], curves.precision_recall, f"Image precision-recall, AUPR {image.aupr:.3f}")
        _histogram(axes[0, 2], evaluation)
        if pixel is not None:
            metrics = pixel.metrics
            _roc(axes[1, 0], pixel.curves.roc, f"Pixel ROC, AUROC {metrics.auroc:.3f}")
            _precision_recall(
                axes[1, 1], pixel.curves.precision_recall, f"Pixel precision-recall, AUPR {metrics.aupr:.3f}"
            )
            _pro(axes[1, 2], pixel.curves.pro, metrics.pro_limit, metrics.aupro)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


def write_report(folder: Path, evaluation: Evaluation, title: str, **about: Any) -> None:
    """Write ``evaluation.json``, ``evaluation.md``, ``scores.csv``, ``curves.json`` and ``curves.png`` into ``folder``.

    Raises:
        OutputWriteError: a file could not be written.
    """
    atomic.write_json(folder / "evaluation.json", to_json(evaluation, **about))
    atomic.write_text(folder / "evaluation.md", to_markdown(evaluation, title))
    atomic.write_text(folder / "scores.csv", to_csv(evaluation))
    atomic.write_json(folder / "curves.json", curves_json(evaluation))
    atomic.write_bytes(folder / "curves.png", curves_png(evaluation, title))


def _roc(axis: Any, curve: Curve, title: str) -> None:
    axis.plot((0, 1), (0, 1), color=_GREY, linewidth=0.8, linestyle=":")
    _line(axis, curve.thinned(), title, "false-positive rate", "true-positive rate")


def _precision_recall(axis: Any, curve: Curve, title: str) -> None:
    _line(axis, curve.thinned(), title, "recall", "precision")


def _pro(axis: Any, curve: Curve, limit: float, aupro: float) -> None:
    title = f"Region overlap, AUPRO@{limit:g} {aupro:.3f}"
    _line(axis, curve.up_to(limit).thinned(), title, "false-positive rate", "mean region overlap")
    axis.set_xlim(0, limit)


def _histogram(axis: Any, evaluation: Evaluation) -> None:
    scores, labels = evaluation.predictions.scores, evaluation.labels
    bins = np.histogram_bin_edges(scores, 30)
    for chosen, name, color in ((~labels, "normal", _BLUE), (labels, "anomalous", _VERMILION)):
        axis.hist(scores[chosen], bins, label=name, color=color, alpha=0.7)
    axis.axvline(evaluation.image.threshold, color="black", linestyle="--", linewidth=1, label="threshold")
    axis.legend(frameon=False)
    _style(axis, "Image scores", "raw score", "images")


def _line(axis: Any, curve: Curve, title: str, xlabel: str, ylabel: str) -> None:
    axis.plot(curve.x, curve.y, color=_BLUE, linewidth=1.8)
    axis.fill_between(curve.x, curve.y, color=_BLUE, alpha=0.1, linewidth=0)
    axis.set(xlim=(0, 1), ylim=(0, 1.02))
    _style(axis, title, xlabel, ylabel)


def _style(axis: Any, title: str, xlabel: str, ylabel: str) -> None:
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
