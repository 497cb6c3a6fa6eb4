from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_bundle import edit_manifest, expected_score, some_image, tiny_manifest, tiny_setup

import edge_ad
from edge_ad import atomic
from edge_ad.cli import predict
from edge_ad.errors import OutputWriteError
from edge_ad.imaging import read_image, write_png
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.predictions import predict_files

SIZE = tiny_setup().image_size


def records(output):
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


def test_every_image_gets_a_line_an_overlay_and_a_mask(run, bundle, images, tmp_path):
    output = tmp_path / "out"
    code, out, err = run("predict", bundle, images, "-o", output)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["normal", "anomalous"]
    assert err == f"2 inspected, 1 anomalous, 0 failed; see {output / 'results.jsonl'}\n"

    grey, noise = records(output)
    assert grey["source"] == str(images / "grey.png")
    assert datetime.fromisoformat(grey["time_utc"]).utcoffset().total_seconds() == 0
    assert (grey["pred_label"], noise["pred_label"]) == (False, True)
    assert (grey["verdict"], noise["verdict"], noise["device"]) == ("normal", "anomalous", "CPU")
    assert noise["raw_score"] == pytest.approx(expected_score(some_image(tiny_setup()), tiny_manifest()), rel=1e-5)
    assert noise["pred_score"] == pytest.approx(min(1, (noise["raw_score"] - 0.2) / 1.2), rel=1e-5)  # scale 0.2 .. 0.8
    assert len(noise["tile_scores"]) == 4
    assert noise["raw_score"] == pytest.approx(np.mean(noise["tile_scores"]), rel=1e-6)
    assert noise["timings_ms"]["total"] > 0
    assert noise["map_size"] == noise["image_size"] == list(SIZE)
    assert noise["regions"][0]["max_score"] >= noise["regions"][-1]["max_score"] >= 0.5
    assert grey["regions"] == []
    mask = read_image(output / noise["mask"])
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[:, :, 0] > 0).sum() == sum(region["area_px"] for region in noise["regions"])
    assert not read_image(output / grey["mask"]).any()
    assert read_image(output / noise["overlay"]).shape == (*SIZE, 3)


def test_outputs_have_the_size_of_the_image(run, bundle, tmp_path):
    write_png(tmp_path / "large.png", np.full((101, 83, 3), 90, np.uint8))
    assert run("predict", bundle, tmp_path / "large.png", "-o", tmp_path / "out").code == 0
    (record,) = records(tmp_path / "out")
    assert (record["image_size"], record["map_size"]) == ([101, 83], list(SIZE))
    assert not list(tmp_path.rglob("*.part*"))
    for kind in ("overlay", "mask"):
        assert read_image(tmp_path / "out" / record[kind]).shape[:2] == (101, 83)


def test_regions_are_in_pixels_of_the_image(run, bundle, tmp_path):
    image = np.full((5 * SIZE[0], 3 * SIZE[1], 3), 90, np.uint8)
    image[150:175, 120:135] = (255, 0, 0)
    write_png(tmp_path / "large.png", image)
    assert run("predict", bundle, tmp_path / "large.png", "-o", tmp_path / "out").code == 0
    (record,) = records(tmp_path / "out")
    (region,) = record["regions"]
    mask = read_image(tmp_path / "out" / record["mask"])[:, :, 0] > 0
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    assert (region["y"], region["height"]) == (rows[0], rows[-1] - rows[0] + 1)
    assert (region["x"], region["width"]) == (cols[0], cols[-1] - cols[0] + 1)
    assert region["area_px"] == mask.sum() == 25 * 15


def test_the_mask_of_a_small_image_shows_every_region(run, bundle, tmp_path, monkeypatch):
    """One pixel of the map, a tenth of the image's, where its box is."""
    mask = np.zeros(SIZE, bool)
    mask[31, 41] = True
    call = Detector.__call__
    monkeypatch.setattr(Detector, "__call__", lambda *given, **more: replace(call(*given, **more), pred_mask=mask))
    write_png(tmp_path / "small.png", np.full((4, 5, 3), 90, np.uint8))
    assert run("predict", bundle, tmp_path / "small.png", "-o", tmp_path / "out").code == 0
    (record,) = records(tmp_path / "out")
    (region,) = record["regions"]
    shown = read_image(tmp_path / "out" / record["mask"])[:, :, 0]
    assert np.argwhere(shown).tolist() == [[region["y"], region["x"]]]


def test_equal_names_do_not_overwrite_each_other(run, bundle, tmp_path):
    values = {"a/part.png": 10, "b/part.png": 20, "b/PART.png": 30, "b/part-2.png": 40}
    for name, value in values.items():
        write_png(tmp_path / name, np.full((*SIZE, 3), value, np.uint8))
    assert run("predict", bundle, tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out").code == 0
    written = records(tmp_path / "out")
    assert len({record["overlay"].casefold() for record in written}) == len(values)
    for record in written:
        corner = read_image(tmp_path / "out" / record["overlay"])[-1, -1]
        assert abs(int(corner[0]) - int(read_image(record["source"])[-1, -1, 0])) <= 1  # grey: no heat


def test_a_corrupt_image_among_many(run, bundle, images, tmp_path):
    (images / "hurt.png").write_bytes((images / "noise.png").read_bytes()[:200])
    code, out, err = run("predict", bundle, images, "-o", tmp_path / "out")
    assert code == 1
    assert len(out.splitlines()) == 2
    first, summary, last = err.splitlines()
    assert first == f"error: {images / 'hurt.png'}: the file is truncated; copy it again"
    assert summary.startswith("2 inspected, 1 anomalous, 1 failed")
    assert last.startswith("error: 1 of 3 images could not be inspected")
    grey, hurt, noise = records(tmp_path / "out")
    assert hurt["error"].endswith("the file is truncated; copy it again")
    assert (hurt["verdict"], hurt["pred_label"]) == ("error", True)  # not known to be good
    assert "error" not in grey | noise


def test_an_image_without_a_verdict_does_not_stop_the_others(run, bundle, images, tmp_path, monkeypatch):
    def load(*arguments, **options):
        detector = real(*arguments, **options)
        head = detector.sessions[2]
        fetch = head.fetch

        def poisoned(handle):  # of noise, whose map is not flat
            values = np.array(fetch(handle))
            return np.full_like(values, np.nan) if values.max() > 0.2 else values

        monkeypatch.setattr(head, "fetch", poisoned)
        return detector

    real = predict.load
    monkeypatch.setattr(predict, "load", load)
    code, out, err = run("predict", bundle, images, "-o", tmp_path / "out")
    assert (code, len(out.splitlines())) == (1, 1)
    message = f"{images / 'noise.png'}: tile r00_c01: the model gave NaN or infinity on CPU"
    assert f"error: {message}" in err
    assert "error: 1 of 2 images could not be inspected" in err
    grey, noise = records(tmp_path / "out")
    assert grey["pred_label"] is False
    assert (noise["verdict"], noise["pred_label"]) == ("error", True)
    assert noise["error"].startswith(message)


def test_the_guide_names_every_field(run, bundle, images, tmp_path):
    (images / "hurt.png").write_bytes(b"")
    run("predict", bundle, images, "-o", tmp_path / "out")
    grey, hurt, _ = records(tmp_path / "out")
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    _, _, table = guide.partition("| field of `results.jsonl` |")
    rows = [row.strip("|").split("|") for row in table.partition("\n\n")[0].splitlines()[2:]]
    fields = {name: where for names, where, _ in rows for name in re.findall(r"`(\w+)`", names)}
    assert {name for name, where in fields.items() if "results" in where} == grey.keys()
    assert {name for name, where in fields.items() if "errors" in where} == hurt.keys()


def test_lines_name_the_bundle_and_its_threshold(run, bundle, images, tmp_path):
    (images / "hurt.png").write_bytes(b"")
    run("predict", bundle, images, "-o", tmp_path / "out")
    for record in records(tmp_path / "out"):
        assert record["raw_threshold"] == 0.8
        assert record["manifest_digest"] == json.loads((bundle / "manifest.json").read_text())["digest"][:16]
    with edge_ad.load(bundle) as detector:
        assert detector.with_normalisation(detector.manifest.normalisation).manifest_digest is None


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such name")
def test_a_name_that_stdout_cannot_encode(run, bundle, images, tmp_path):
    """A Latin-1 name of old: no UTF-8, so Python has it with a lone surrogate."""
    (images / "noise.png").rename(images / os.fsdecode(b"t\xfcr.png"))
    code, out, _ = run("predict", bundle, images, "-o", tmp_path / "out")
    assert (code, len(out.splitlines())) == (0, 2)
    assert out.endswith("t\\udcfcr.png\n")
    last = records(tmp_path / "out")[-1]
    assert os.fsencode(last["source"]).endswith(b"t\xfcr.png")
    assert (tmp_path / "out" / last["mask"]).exists()


def test_the_longest_names(run, bundle, images, tmp_path):
    grey = (images / "grey.png").read_bytes()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ("n" * 251 + ".png")).write_bytes(grey)
    assert run("predict", bundle, tmp_path / "a", tmp_path / "b", images, "-o", tmp_path / "out").code == 0
    found = records(tmp_path / "out")
    assert len({record["mask"] for record in found}) == 4
    assert all((tmp_path / "out" / record[kind]).exists() for record in found for kind in ("overlay", "mask"))


def test_results_alone(run, bundle, images, tmp_path):
    output = tmp_path / "out"
    assert run("predict", bundle, images, "-o", output).code == 0
    with_images = records(output)
    assert run("predict", bundle, images, "--no-images", "--overwrite", "-o", output).code == 0
    assert [path.name for path in output.iterdir()] == ["results.jsonl"]
    for record, before in zip(records(output), with_images, strict=True):
        assert record.keys() == before.keys() - {"overlay", "mask"}
        assert record["raw_score"] == before["raw_score"]
    code, _, err = run("predict", bundle, images, "--no-images", "--tiles", "-o", tmp_path / "new")
    assert (code, err) == (2, "error: --tiles: drawn on the overlays, which --no-images leaves out\n")


def test_only_results_are_written_to_the_disk_at_once(run, bundle, images, tmp_path, monkeypatch):
    """Not flushed: overlays and masks, two files and two folders per image."""
    flushed = []
    flush = atomic._flush
    monkeypatch.setattr(atomic, "_flush", lambda path: flushed.append(path) or flush(path))
    for number in range(3):
        write_png(images / f"{number}.png", np.full((*SIZE, 3), 90, np.uint8))
    flushed.clear()
    assert run("predict", bundle, images, "-o", tmp_path / "out").code == 0
    assert flushed == [tmp_path / "out"] * 2  # which has two new folders


def test_earlier_results_are_replaced_only_when_asked(run, bundle, images, tmp_path):
    output = tmp_path / "out"
    assert run("predict", bundle, images, "-o", output).code == 0
    (output / "notes.txt").write_text("mine")
    code, _, err = run("predict", bundle, images / "grey.png", "-o", output)
    assert code == 2
    assert "holds earlier results; choose another -o, or pass --overwrite" in err
    assert len(records(output)) == 2
    assert run("predict", bundle, images / "grey.png", "--overwrite", "-o", output).code == 0
    assert len(records(output)) == 1
    assert sorted(path.name for path in output.rglob("*.*")) == ["grey.png", "grey.png", "notes.txt", "results.jsonl"]


def test_what_others_put_among_the_results_stays(run, bundle, images, tmp_path):
    output = tmp_path / "out"
    run("predict", bundle, images, "-o", output)
    (output / "overlays" / "mine.png").write_text("mine")
    (tmp_path / "elsewhere.png").write_text("mine")
    named = ["../../elsewhere.png", "", "..", 7, "\0"]
    lines = [json.dumps({"overlay": name, "mask": name}) for name in named]
    with (output / "results.jsonl").open("a") as results:
        results.write("\n".join([*lines, "[1]", '{"overlay": "overlays/mi']))  # killed while it wrote
    assert run("predict", bundle, images / "grey.png", "--overwrite", "-o", output).code == 0
    left = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*"))
    assert left == ["masks/grey.png", "overlays/grey.png", "overlays/mine.png", "results.jsonl"]
    assert (tmp_path / "elsewhere.png").exists()


@pytest.mark.parametrize("through", ["folder", "link", "links"])
def test_sources_among_the_earlier_results_are_refused(run, bundle, images, tmp_path, through):
    output = tmp_path / "out"
    run("predict", bundle, images, "-o", output)
    before = sorted(output.rglob("*"))
    sources = output / "overlays"
    if through == "link":
        sources = tmp_path / "linked"
        sources.symlink_to(output / "overlays")
    elif through == "links":
        sources = tmp_path / "links"
        sources.mkdir()
        (sources / "a.png").symlink_to(output / "masks" / "noise.png")
    code, _, err = run("predict", bundle, sources, "--overwrite", "-o", output)
    assert (code, "lies among the earlier results" in err) == (2, True)
    assert sorted(output.rglob("*")) == before
    assert len(records(output)) == 2


def test_outputs_that_cannot_be_written_are_one_line(run, bundle, images, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, out, err = run("predict", bundle, images, "-o", tmp_path / "file" / "out")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: cannot write {tmp_path / 'file' / 'out'}: Not a directory")
    (tmp_path / "out" / "results.jsonl").mkdir(parents=True)
    code, out, err = run("predict", bundle, images, "--overwrite", "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "is not empty and holds no earlier results" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_a_full_disk_under_the_results_is_one_line(run, bundle, images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.jsonl").symlink_to("/dev/full")
    with edge_ad.load(bundle) as detector, pytest.raises(OutputWriteError, match=r"results\.jsonl: No space left"):
        list(predict_files(detector, [("grey", images / "grey.png")], tmp_path / "out"))


def test_a_folder_that_is_not_ours_is_left_alone(run, bundle, images):
    before = sorted(images.iterdir())
    code, _, err = run("predict", bundle, images, "--overwrite", "-o", images)
    assert code == 2
    assert "is not empty and holds no earlier results" in err
    assert sorted(images.iterdir()) == before
    assert "is not a folder" in run("predict", bundle, images, "-o", images / "grey.png").err


@pytest.mark.parametrize(("name", "message"), [("nix.png", "not found"), ("empty", "holds no image")])
def test_bad_sources_stop_before_anything_is_written(run, bundle, images, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    code, out, err = run("predict", bundle, images, tmp_path / name, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_fail_on_anomaly(run, bundle, images, tmp_path):
    code, _, err = run("predict", bundle, images, "--fail-on-anomaly", "-o", tmp_path / "a")
    assert code == 3
    assert err.endswith("error: 1 of 2 images are anomalous\n")
    assert run("predict", bundle, images / "grey.png", "--fail-on-anomaly", "-o", tmp_path / "b").code == 0


def test_tiles_are_drawn(run, bundle, images, tmp_path):
    grey = images / "grey.png"
    run("predict", bundle, grey, "-o", tmp_path / "plain")
    run("predict", bundle, grey, "--tiles", "-o", tmp_path / "tiles")
    plain, tiles = (read_image(tmp_path / name / "overlays" / "grey.png") for name in ("plain", "tiles"))
    assert (plain[23] != tiles[23]).any()  # the border between the two rows of tiles


def test_files_are_read_as_those_that_were_trained_on(run, bundle, tmp_path):
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), (some_image(tiny_setup()).astype(np.uint16) * 16)[:, :, ::-1])
    edit_manifest(bundle, lambda manifest: manifest["input"].update(bits=12))
    scores = []
    for name, options in (("trained", ()), ("twelve", ("--bits", 12)), ("sixteen", ("--bits", 16))):
        assert run("predict", bundle, deep, *options, "-o", tmp_path / name).code == 0
        scores.append(records(tmp_path / name)[0]["raw_score"])
    assert scores[0] == scores[1] != scores[2]


def test_bits(run, bundle, tmp_path):
    image = np.zeros((*SIZE, 3), np.uint16)
    image[:, :, 0] = 4095  # blue, as OpenCV writes it
    cv2.imwrite(str(tmp_path / "deep.png"), image)
    deep = tmp_path / "deep.png"
    scores = {}
    for bits in (12, 16):
        assert run("predict", bundle, deep, "--bits", bits, "-o", tmp_path / str(bits)).code == 0
        scores[bits] = records(tmp_path / str(bits))[0]["raw_score"]
    blue = np.zeros((*SIZE, 3), np.uint8)
    blue[:, :, 2] = 255
    assert scores[12] == pytest.approx(expected_score(blue, tiny_manifest()), rel=1e-5)
    assert scores[16] < scores[12]
    code, _, err = run("predict", bundle, deep, "--bits", 11, "-o", tmp_path / "11")
    assert code == 1
    assert "exceeds the declared 11 bits" in err


def test_device_and_precision_reach_the_runtime(run, bundle, images, tmp_path, monkeypatch):
    calls = []

    def load(bundle, device, *, require_signature, **options):
        calls.append((device, *options.values()))
        return real(bundle)

    real = predict.load
    monkeypatch.setattr(predict, "load", load)
    assert (
        run("predict", bundle, images, "-d", "npu", "--precision", "f16", "--self-test", "-o", tmp_path / "a").code == 0
    )
    options = ("--threads", 2, "--memory-budget", "300MB", "--cache-dir", "compiled")
    assert run("predict", bundle, images, *options, "-o", tmp_path / "b").code == 0
    assert calls == [
        ("NPU", "f16", None, None, True, None),
        ("CPU", "auto", 2, Path("compiled"), False, "300MB"),
    ]


def test_a_memory_budget_changes_no_score(run, bundle, images, tmp_path):
    run("predict", bundle, images, "--precision", "f32", "-o", tmp_path / "all")
    options = ("--memory-budget", "100KB", "--threads", 1, "--cache-dir", tmp_path / "compiled")
    assert run("predict", bundle, images, "--precision", "f32", *options, "-o", tmp_path / "turns").code == 0
    found = [[record["raw_score"] for record in records(tmp_path / name)] for name in ("all", "turns")]
    assert found[0] == found[1]
    code, _, err = run("predict", bundle, images, "--memory-budget", "some", "-o", tmp_path / "none")
    assert (code, "expected bytes, or a size such as '300MB'" in err) == (2, True)


def test_a_device_that_is_not_there(run, bundle, images, tmp_path):
    code, _, err = run("predict", bundle, images, "--device", "GPU.7", "-o", tmp_path / "out")
    assert code == 4
    assert "found: CPU" in err
    assert not (tmp_path / "out").exists()
