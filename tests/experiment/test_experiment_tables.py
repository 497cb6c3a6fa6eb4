from __future__ import annotations

import csv
import math
import statistics
from typing import Any

import pytest
from experiment_fakes import benchmark, bundle_outcome, outcome, record

from edge_ad.bundle.manifest import ScoreMerge
from edge_ad.errors import ParityError
from edge_ad.evaluation.spro import SproMetrics
from edge_ad.experiment.config import Variant
from edge_ad.experiment.means import Spread, Values
from edge_ad.experiment.plots import auroc_by_area, defect_sizes, latencies, plots
from edge_ad.experiment.record import ImageScore, Outcome, Record
from edge_ad.experiment.report import markdown, write_report
from edge_ad.experiment.tables import (
    Table,
    accuracy_table,
    cost_table,
    drop_table,
    image_auroc,
    kind_drop_table,
    kind_table,
    kinds_of,
    tables,
    threshold_table,
    to_csv,
)

TORCH = ("resnet18", ScoreMerge.MEAN, Variant.TORCH)
INT8 = ("resnet18", ScoreMerge.MEAN, Variant.INT8)

# AUROC by category and seed; casting has no masks
#           seed 0  1     2
AUROC = {
    "nut": (0.90, 0.92, 0.97),
    "bolt": (0.70, 0.80, 0.90),
    "cast": (0.50, 0.60, 0.40),
}
AUPRO = {"nut": (0.60, 0.70, 0.80), "bolt": (0.30, 0.30, 0.60), "cast": (None, None, None)}


@pytest.fixture
def records() -> list[Record]:
    """Two setups: sm256 as above, ens9 one point better; and int8 of sm256, half a point worse in AUROC."""
    found = []
    for category, values in AUROC.items():
        for seed, (auroc, aupro) in enumerate(zip(values, AUPRO[category], strict=True)):
            where = {"category": category, "seed": seed}
            found.append(record(outcome(auroc, aupro), **where))
            found.append(record(outcome(auroc + 0.01, aupro), **where, setup="ens9"))
            found.append(record(bundle_outcome(auroc - 0.005, aupro), **where, precision=Variant.INT8))
    return found


def test_accuracy_by_hand(records: list[Record]):
    table = accuracy_table(TORCH, records)
    assert table.headers == ("category", "padim sm256", "padim ens9")
    # nut: mean 0.93, deviations -.03 -.01 .04, sd sqrt(.0026 / 2) = .03606; AUPRO .7 ± .1
    # bolt: .8 ± .1; AUPRO .4 ± sqrt((.01 + .01 + .04) / 2) = .1732
    # mean over categories by seed: .70, .77333, .75667, mean .74333, sd .03844; AUPRO without cast: .45, .5, .7
    assert [row[:2] for row in table.rows] == [
        ("metal/nut", "93.0 ± 3.6 / 70.0 ± 10.0"),
        ("metal/bolt", "80.0 ± 10.0 / 40.0 ± 17.3"),
        ("metal/cast", "50.0 ± 10.0 / -"),
        ("mean", "74.3 ± 3.8 / 55.0 ± 13.2"),
    ]
    assert table.rows[-1][2].startswith("75.3 ± 3.8")


def test_means_against_the_standard_library(records: list[Record]):
    values = Values.of([each for each in records if each.identity.setup == "sm256"], image_auroc, records)
    torch = [each for each in records if each.identity.precision is Variant.TORCH and each.identity.setup == "sm256"]
    mean = Values.of(torch, image_auroc, records).mean(("padim", "sm256"))
    by_seed = [statistics.fmean(AUROC[category][seed] for category in AUROC) for seed in range(3)]
    assert mean is not None
    assert mean.deviation is not None
    assert math.isclose(mean.mean, statistics.fmean(by_seed))
    assert math.isclose(mean.deviation, statistics.stdev(by_seed))
    assert values.cell(("metal", "nix"), ("padim", "sm256")) is None


def test_one_seed_has_no_deviation():
    assert Spread.of([0.5]) == Spread(0.5, None, 1)
    assert accuracy_table(TORCH, [record(outcome(0.5, None))]).rows == (("metal/nut", "50.0 / -"), ("mean", "50.0 / -"))


def test_a_drop_is_taken_seed_by_seed(records: list[Record]):
    table = drop_table(INT8, records)
    assert table.headers == ("category", "padim sm256")
    # The same loss at every seed: no deviation, whatever the seeds themselves deviate by
    assert table.rows[0] == ("metal/nut", "-0.5 ± 0.0 / +0.0 ± 0.0")
    assert table.rows[-1] == ("mean", "-0.5 ± 0.0 / +0.0 ± 0.0")


def test_a_column_that_lacks_a_category_has_no_mean(records: list[Record]):
    there = [each for each in records if each.identity.category != "bolt" or each.identity.setup != "ens9"]
    failed = [record(ParityError("no"), category="bolt", seed=seed, setup="ens9") for seed in range(3)]
    rows = accuracy_table(TORCH, there + failed).rows
    assert rows[1][1:] == ("80.0 ± 10.0 / 40.0 ± 17.3", "-")
    assert rows[-1][1:] == ("74.3 ± 3.8 / 55.0 ± 13.2", "-")


def test_a_category_that_failed_everywhere_in_a_precision_leaves_no_mean_there(records: list[Record]):
    changed = [
        record(ParityError("no"), category="bolt", seed=each.identity.seed, precision=Variant.INT8)
        if (each.identity.category, each.identity.precision) == ("bolt", Variant.INT8)
        else each
        for each in records
    ]
    assert accuracy_table(INT8, changed).rows[-1] == ("mean", "-")
    assert drop_table(INT8, changed).rows[1:] == (("metal/bolt", "-"), ("metal/cast", "-0.5 ± 0.0 / -"), ("mean", "-"))


def test_a_seed_that_lacks_a_category_is_not_in_the_mean(records: list[Record]):
    there = [each for each in records if (each.identity.category, each.identity.seed) != ("bolt", 2)]
    assert accuracy_table(TORCH, there).rows[-1][1].startswith("73.7 ± 5.2")  # seeds 0 and 1: .70 and .77333


# AUROC, AUPRO, AU-sPRO and scores of the anomalous images by kind; the threshold is 1.25
KINDS = {
    "nut": {"logical": (0.6, 0.2, 0.3, (1.0, 2.0)), "structural": (0.8, 0.6, 0.7, (1.25,))},
    "bolt": {
        "logical": (0.4, 0.4, 0.5, (0.1, 0.2)),
        "structural": (1.0, 0.8, 0.9, (2.0,)),
        "third": (0.5, 0.5, 0.5, ()),
    },
}


def split(kinds: dict[str, Any], points: float = 0.0, **changes: Any) -> Outcome:
    """An outcome with figures by kind, all but the scores ``points`` higher."""
    auspro = {kind: figures[2] + points for kind, figures in kinds.items()}
    return outcome(
        0.7 + points,
        0.5 + points,
        auroc_by_defect={kind: figures[0] + points for kind, figures in kinds.items()},
        aupro_by_defect={kind: figures[1] + points for kind, figures in kinds.items()},
        spro=SproMetrics(statistics.fmean(auspro.values()), auspro, 0.05, 9),
        images=tuple(
            ImageScore(f"{kind}/{score}.png", 1, kind, score, 0.01) for kind in kinds for score in kinds[kind][3]
        ),
        **changes,
    )


@pytest.fixture
def by_kind() -> list[Record]:
    """A data set of two categories that share two kinds, and one without such: torch, and int8 ten points worse."""
    found = [
        record(split(kinds, points), dataset="loco", category=category, precision=precision)
        for precision, points in ((Variant.TORCH, 0.0), (Variant.INT8, -0.1))
        for category, kinds in KINDS.items()
    ]
    return [*found, record(outcome(0.9, None)), record(outcome(0.9, 0.8), category="bolt")]


def test_kinds_are_those_all_categories_share(by_kind: list[Record]):
    assert kinds_of(by_kind) == {"loco": ("logical", "structural"), "metal": ()}
    one = [record(outcome(auroc_by_defect={"pit": 0.5, "stain": 0.6}))]
    assert kinds_of(one) == {"metal": ()}  # a set of one category: kinds of its own, unless AU-sPRO is split by them
    assert kinds_of(by_kind[:1]) == {"loco": ("logical", "structural")}
    assert kinds_of([*one, record(outcome(auroc_by_defect={"dent": 0.5}), category="bolt")]) == {"metal": ()}
    old = [record(outcome(auroc_by_defect={"a": 0.5, "b": 0.6}, aupro_by_defect=None), category=c) for c in "xy"]
    assert kinds_of(old) == {"metal": ("a", "b")}
    assert kind_table(TORCH, old).rows[0] == ("metal/x, a", "50.0 / -")
    assert kinds_of([record(ParityError("no"))]) == {}


def test_accuracy_by_kind_by_hand(by_kind: list[Record]):
    table = kind_table(TORCH, by_kind)
    assert table.title == "Image AUROC / AUPRO / AU-sPRO by kind of defect, torch, resnet18, mean of tile scores"
    assert table.headers == ("category, kind", "padim sm256")
    assert table.rows == (
        ("loco/nut, logical", "60.0 / 20.0 / 30.0"),
        ("loco/bolt, logical", "40.0 / 40.0 / 50.0"),
        ("mean, logical", "50.0 / 30.0 / 40.0"),
        ("loco/nut, structural", "80.0 / 60.0 / 70.0"),
        ("loco/bolt, structural", "100.0 / 80.0 / 90.0"),
        ("mean, structural", "90.0 / 70.0 / 80.0"),
        ("loco/nut, mean of kinds", "70.0 / 40.0 / 50.0"),
        ("loco/bolt, mean of kinds", "70.0 / 60.0 / 70.0"),
        ("mean, mean of kinds", "70.0 / 50.0 / 60.0"),
    )
    assert [row[1] for row in kind_drop_table(INT8, by_kind).rows] == ["-10.0 / -10.0 / -10.0"] * 9
    # Of the whole sets: AU-sPRO is the mean over kinds, three of them for bolts; others have none
    accuracy = accuracy_table(TORCH, by_kind)
    assert accuracy.rows == (
        ("loco/nut", "70.0 / 50.0 / 50.0"),
        ("loco/bolt", "70.0 / 50.0 / 63.3"),
        ("metal/nut", "90.0 / - / -"),
        ("metal/bolt", "90.0 / 80.0 / -"),
        ("mean", "80.0 / 60.0 / 56.7"),
    )
    assert "AU-sPRO is the mean over kinds" in accuracy.note
    assert drop_table(INT8, by_kind).rows[0] == ("loco/nut", "-10.0 / -10.0 / -10.0")


def test_recall_by_kind_by_hand(by_kind: list[Record]):
    table = threshold_table(by_kind)
    assert table.headers[-2:] == ("recall, logical", "recall, structural")
    # nut: one of two logical images at the threshold or above, bolt none of two; every structural one
    assert table.rows[0][-2:] == ("25.0", "100.0")
    assert threshold_table([record()]).headers[-1] == "AUPR"


def test_several_split_sets_have_means_of_their_own(by_kind: list[Record]):
    more = [record(split(KINDS["nut"]), dataset="other", category=category) for category in ("a", "b")]
    rows = kind_table(TORCH, [*by_kind, *more]).rows
    assert [row[0] for row in rows if row[0].startswith("mean")] == [
        *("mean of loco, logical", "mean of loco, structural", "mean of loco, mean of kinds"),
        *("mean of other, logical", "mean of other, structural", "mean of other, mean of kinds"),
    ]


def test_tables_and_columns_by_kind_are_there_where_kinds_are(by_kind: list[Record]):
    assert [table.title.split(",")[0] for table in tables(by_kind)] == [
        "Image AUROC / AUPRO / AU-sPRO",
        "Image AUROC / AUPRO / AU-sPRO by kind of defect",
        "Image AUROC / AUPRO / AU-sPRO",
        "Image AUROC / AUPRO / AU-sPRO by kind of defect",
        "Change of image AUROC / AUPRO / AU-sPRO against torch",
        "Change of image AUROC / AUPRO / AU-sPRO by kind of defect against torch",
        "At the threshold",
        "Cost",
    ]
    rows = list(csv.DictReader(to_csv(by_kind).splitlines()))
    assert float(rows[0]["auspro"]) == 0.5
    assert [float(rows[1][f"{name}_logical"]) for name in ("image_auroc", "pixel_aupro", "auspro", "image_recall")] == [
        *(0.4, 0.4, 0.5, 0.0)
    ]
    assert rows[-1]["auspro"] == rows[-1]["auspro_logical"] == ""
    assert "image_auroc_third" not in rows[1]
    assert not [name for name in csv.DictReader(to_csv([record()]).splitlines()).fieldnames or () if "scratch" in name]


def test_costs_are_means_in_their_units():
    made = [
        record(outcome(training_s=10.0), seed=0),
        record(outcome(training_s=20.0, kept_step=60.0), seed=1),
        record(outcome(training_s=None), seed=2),
        record(bundle_outcome(), seed=0, precision=Variant.INT8),
        record(bundle_outcome(benchmark=None, size_bytes=13_000_000), seed=1, precision=Variant.INT8),
    ]
    made += [record(each.outcome, seed=9, score_merge=ScoreMerge.MAX) for each in made]  # no rows of their own
    table = cost_table(made)
    torch, int8 = table.rows
    assert torch == ("resnet18", "padim", "sm256", "torch", "15.0", "60", "3.00", "-", "40.0", "-", "-", "-", "-")
    assert int8[7:] == ("12.0", "40.0", "8.50", "1.050", "120.0", "150")
    assert int8[3] == "int8"


def test_the_list_of_tables(records: list[Record]):
    titles = [table.title for table in tables(records)]
    assert titles == [
        "Image AUROC / AUPRO, torch, resnet18, mean of tile scores",
        "Image AUROC / AUPRO, int8, resnet18, mean of tile scores",
        "Change of image AUROC / AUPRO against torch, int8, resnet18, mean of tile scores",
        "At the threshold",
        "Cost",
    ]


def test_csv_has_a_line_per_record(records: list[Record]):
    rows = list(csv.DictReader(to_csv([*records, record(ParityError("no"), seed=9)]).splitlines()))
    assert len(rows) == len(records) + 1
    assert (rows[0]["category"], rows[0]["precision"], float(rows[0]["image_auroc"])) == ("nut", "torch", 0.9)
    assert (rows[2]["precision"], rows[2]["latency_mean_ms"], rows[2]["size_bytes"]) == ("int8", "8.5", "11000000")
    assert rows[-2]["pixel_aupro"] == ""  # casting
    assert (rows[-1]["error"], rows[-1]["image_auroc"]) == ("ParityError", "")


def test_markdown_aligns_figures_to_the_right():
    text = markdown(Table("T", ("a", "b"), (("x", "1.0"), ("y", "-")), "A note."))
    assert text == "## T\n\n| a | b |\n| --- | ---: |\n| x | 1.0 |\n| y | - |\n\nA note."


def test_auroc_by_area():
    normal = [ImageScore(f"{score}", 0, "good", score, None) for score in (0.1, 0.3)]
    defects = [
        ImageScore("a", 1, "x", 0.2, 0.0005),  # above one of two normal images
        ImageScore("b", 1, "x", 0.4, 0.0009),  # above both
        ImageScore("c", 1, "x", 0.0, 0.003),  # on the limit: the bin above; below both
        ImageScore("d", 1, "x", 0.9, 0.5),
        ImageScore("e", 1, "x", 0.9, None),  # without a mask: in no bin
    ]
    assert auroc_by_area([*normal, *defects]) == [(0.75, 2), (None, 0), (0.0, 1), (None, 0), (1.0, 1)]


def test_defect_sizes_average_categories_and_count_images_once():
    def images(score: float) -> tuple[ImageScore, ...]:
        return (ImageScore("n", 0, "good", 0.5, None), ImageScore("d", 1, "x", score, 0.02))

    made = [
        record(outcome(images=images(score)), category=category, seed=seed)
        for category, score in (("nut", 0.9), ("bolt", 0.1))
        for seed in (0, 1)
    ]
    name, curves, counts = defect_sizes(made)
    assert name == "torch, resnet18, mean"
    assert curves == {"padim sm256": [None, None, None, 0.5, None]}
    assert counts == [0, 0, 0, 2, 0]


def test_latencies_are_those_of_benchmarks():
    made = [
        record(),
        record(bundle_outcome(0.9), seed=0, precision=Variant.INT8),
        record(bundle_outcome(0.7, benchmark=None), seed=1, precision=Variant.INT8),
        record(bundle_outcome(0.9, benchmark=benchmark(latency_mean_ms=1.0)), score_merge=ScoreMerge.MAX),
    ]
    assert latencies(made) == [("padim sm256", Variant.INT8, 8.5, 0.8)]


def test_figures_without_points_are_left_out():
    assert plots([record(outcome(images=()))]) == {}
    assert plots([record(ParityError("no"))]) == {}
    assert set(plots([record(bundle_outcome(), precision=Variant.INT8)])) == {
        "auroc_by_defect_size",
        "auroc_against_latency",
    }


def test_a_report_says_what_is_missing_and_what_failed(tmp_path, records):
    write_report(tmp_path, [*records, record(ParityError("off | by <much>"), seed=9)], "Experiment x", 40)
    text = (tmp_path / "results.md").read_text()
    assert "27 of 40 results measured, 1 failed, 12 still to be computed." in text
    assert "| metal/nut padim resnet18 sm256 seed 9 torch mean | ParityError | off \\| by <much> |" in text
    page = (tmp_path / "results.html").read_text()
    assert "off | by &lt;much&gt;" in page
    assert page.count("<img") == 2
    for name in ("auroc_by_defect_size.png", "auroc_against_latency.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert name in text
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 29
