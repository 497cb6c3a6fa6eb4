"""An evaluation as JSON, Markdown, a table of scores, and a figure of its curves."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from edge_ad import atomic
from edge_ad.evaluation.curve import Curve
from edge_ad.evaluation.evaluate import MEAN_OF_KINDS, Evaluation, PixelEvaluation, mean_of_kinds
from edge_ad.records import to_plain
from edge_ad.tiling import format_size

SCHEMA_VERSION = 1
REPORT_NAME = "evaluation.json"  # of what `write_report` writes, the first

# Okabe and Ito's palette, told apart by colour-blind readers too
_BLUE, _VERMILION, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#5f6b76"


def to_json(evaluation: Evaluation, **about: Any) -> dict[str, Any]:
    """Plain values; ``about`` (what was evaluated) comes first. ``pixel`` is null where there are no masks."""
    pixel = evaluation.pixel
    return {
        "schema_version": SCHEMA_VERSION,
        **about,
        "image": to_plain(evaluation.image),
        "auroc_by_defect": evaluation.auroc_by_defect,
        "pixel": None if pixel is None else {**to_plain(pixel.metrics), "lost_regions": pixel.lost_regions},
        "region_of_interest": _region_json(pixel),
        "mask": _mask_json(pixel),
        "aupro_by_defect": {} if pixel is None else pixel.aupro_by_defect,
        "spro": _spro_json(pixel),
        "metrics_size": None if pixel is None else list(pixel.size),
        "image_size": list(evaluation.image_size),
        "ms_per_image": evaluation.predictions.ms_per_image,
    }


def _region_json(pixel: PixelEvaluation | None) -> dict[str, Any] | None:
    if pixel is None or pixel.inside is None:
        return None
    return {"share": pixel.inside, "outside_regions": pixel.outside_regions}


def _mask_json(pixel: PixelEvaluation | None) -> dict[str, Any] | None:
    if pixel is None or (mask := pixel.mask) is None:
        return None
    rates = {"precision": mask.precision, "recall": mask.recall, "f1": mask.f1}
    return {"threshold": pixel.map_threshold, **rates, **to_plain(mask)}


def _spro_json(pixel: PixelEvaluation | None) -> dict[str, Any] | None:
    if pixel is None or pixel.spro is None:
        return None
    return {**to_plain(pixel.spro.metrics), "lost_regions": pixel.spro.lost_regions}


def to_markdown(evaluation: Evaluation, title: str) -> str:
    """Two tables, image level and pixel level, each with a row per kind of defect.

    Where the data set says how much of a region must be found, also the means over kinds, as such sets are reported.
    """
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
        *(f"| {kind} | {auroc:.4f} | | | | | | |" for kind, auroc in _with_mean(evaluation.auroc_by_defect, pixel)),
        "",
        f"At the threshold: {confusion.true_positives} of {image.anomalous} anomalous images found, "
        f"{confusion.false_positives} of {image.normal} normal ones rejected. F1-max chooses its threshold on these "
        "very images.",
        "",
    ]
    if pixel is None:
        return "\n".join([*lines, "No masks: no pixel metrics.", ""])
    return "\n".join([*lines, *_pixel_table(pixel), *_pixel_notes(pixel)])


def _pixel_table(pixel: PixelEvaluation) -> list[str]:
    metrics, spro = pixel.metrics, pixel.spro
    headers = [f"pixel ({format_size(pixel.size)})", "AUROC", "AUPR", "F1-max", f"AUPRO@{metrics.pro_limit:g}"]
    figures = [f"{value:.4f}" for value in (metrics.auroc, metrics.aupr, metrics.f1_max, metrics.aupro)]
    rows = [[f"{metrics.regions} regions, {metrics.connectivity}-connected", *figures]]
    rows += [[kind, "", "", "", f"{aupro:.4f}"] for kind, aupro in _with_mean(pixel.aupro_by_defect, pixel)]
    if spro is not None:
        headers.append(f"AU-sPRO@{spro.metrics.limit:g}")
        by_kind = {**spro.metrics.auspro_by_defect, MEAN_OF_KINDS: spro.metrics.auspro}
        for row in rows:
            row.append(f"{by_kind[row[0]]:.4f}" if row[0] in by_kind else "")
    rule = ["---", *("---:" for _ in headers[1:])]
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in (headers, rule, *rows)]
    return [*lines, ""]


def _pixel_notes(pixel: PixelEvaluation) -> list[str]:
    spro, size, mask = pixel.spro, format_size(pixel.size), pixel.mask
    notes = []
    if mask is not None:
        notes += [
            f"Masks, at the map's threshold of {pixel.map_threshold:.4g}: {mask.regions_hit} of {mask.regions} regions "
            f"are touched, and {mask.normal_marked} of {mask.normal} normal images; pixels' F1 {mask.f1:.4f}, "
            f"precision {mask.precision:.4f}, recall {mask.recall:.4f}.",
            "",
        ]
    if spro is not None:
        notes += [
            f"AU-sPRO: each of {spro.metrics.regions} masks is a region, complete at its saturation area. A kind is "
            "measured on its own images and all normal ones; false positives are pixels outside every region.",
            "",
        ]
    if pixel.lost_regions or (spro is not None and spro.lost_regions):
        lost = max(pixel.lost_regions, 0 if spro is None else spro.lost_regions)
        notes += [
            f"{lost} regions vanish at {size} and are not counted: compare pixels at a larger --metrics-size.",
            "",
        ]
    if pixel.inside is not None:
        notes += [
            f"Region of interest: {pixel.inside:.0%} of the image. Pixels outside are not compared, and "
            f"{pixel.outside_regions} regions that lie there wholly are not counted.",
            "",
        ]
    return notes


def _with_mean(by_defect: dict[str, float], pixel: PixelEvaluation | None) -> list[tuple[str, float]]:
    """Figures by kind, and their mean where the data set is one that is reported so."""
    mean = pixel is not None and pixel.spro is not None and len(by_defect) > 1
    return [*by_defect.items(), *([(MEAN_OF_KINDS, mean_of_kinds(by_defect))] if mean else [])]


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
        curves |= {f"pixel_spro_{kind}": curve for kind, curve in (pixel.spro.curves if pixel.spro else {}).items()}
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
            _pro(axes[1, 2], pixel)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


def write_report(folder: Path, evaluation: Evaluation, title: str, **about: Any) -> None:
    """Write ``evaluation.json``, ``evaluation.md``, ``scores.csv``, ``curves.json`` and ``curves.png`` into ``folder``.

    Raises:
        OutputWriteError: a file could not be written.
    """
    atomic.write_json(folder / REPORT_NAME, to_json(evaluation, **about))
    atomic.write_text(folder / "evaluation.md", to_markdown(evaluation, title))
    atomic.write_text(folder / "scores.csv", to_csv(evaluation))
    atomic.write_json(folder / "curves.json", curves_json(evaluation))
    atomic.write_bytes(folder / "curves.png", curves_png(evaluation, title))


def _roc(axis: Any, curve: Curve, title: str) -> None:
    axis.plot((0, 1), (0, 1), color=_GREY, linewidth=0.8, linestyle=":")
    _line(axis, curve.thinned(), title, "false-positive rate", "true-positive rate")


def _precision_recall(axis: Any, curve: Curve, title: str) -> None:
    _line(axis, curve.thinned(), title, "recall", "precision")


def _pro(axis: Any, pixel: PixelEvaluation) -> None:
    limit, spro = pixel.metrics.pro_limit, pixel.spro
    title = f"Region overlap, AUPRO@{limit:g} {pixel.metrics.aupro:.3f}"
    _line(axis, pixel.curves.pro.up_to(limit).thinned(), title, "false-positive rate", "mean region overlap")
    axis.set_xlim(0, limit)
    if spro is not None:
        axis.set_title(f"{title}, AU-sPRO@{spro.metrics.limit:g} {spro.metrics.auspro:.3f}")
        for color, (kind, curve) in zip(itertools.cycle((_VERMILION, _GREEN, _GREY)), spro.curves.items()):
            part = curve.up_to(limit).thinned()
            axis.plot(part.x, part.y, color=color, linewidth=1.4, linestyle="--", label=f"sPRO, {kind}")
        axis.axvline(spro.metrics.limit, color="black", linestyle=":", linewidth=1)
        axis.legend(frameon=False, loc="lower right")


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
