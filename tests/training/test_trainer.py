"""The ensemble trainer: every location on its own tiles, whatever happens in between; and which images it fits on."""

import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from file_system import contents
from safetensors.torch import load_file
from tiny_run import BACKBONE, scene, scene_images, tile_setup, tiny_model, tiny_run, write_images

from edge_ad.bundle.manifest import NormalisationStage, ScoreMerge
from edge_ad.data.layouts import read_dataset
from edge_ad.errors import (
    BatchTooLargeError,
    DataNotFoundError,
    IncompleteRunError,
    InputError,
    OutputWriteError,
    RunMismatchError,
    TooFewImagesError,
)
from edge_ad.imaging import encode_png, write_png
from edge_ad.methods import create_model
from edge_ad.setups import SETUPS, Sharing
from edge_ad.tiling import WHOLE, Location
from edge_ad.training import run_folder
from edge_ad.training.run_folder import RunFolder
from edge_ad.training.trainer import hold_out, read_training_images, run_images, train

SETUP = tile_setup()


def mean_embedding(run: RunFolder, images: np.ndarray, locations: tuple[Location, ...]) -> np.ndarray:
    """What PaDiM's head calls ``mean``, (P, d), by numpy: crops of a zero-padded copy, averaged in float64."""
    setup = run.settings.setup
    (height, width), (padded_height, padded_width) = setup.image_size, setup.grid.padded_size
    padded = np.pad(images, ((0, 0), (0, padded_height - height), (0, padded_width - width), (0, 0)))
    crops = []
    for location in locations:
        if location == WHOLE:
            crops.append(np.stack([cv2.resize(i, setup.tile_size[::-1], interpolation=cv2.INTER_AREA) for i in images]))
            continue
        top, left = location.row * setup.stride[0], location.col * setup.stride[1]
        crops.append(padded[:, top : top + setup.tile_size[0], left : left + setup.tile_size[1]])
    (embedding,) = run.model().extract(torch.from_numpy(np.ascontiguousarray(np.concatenate(crops))))
    return embedding.double().mean(0).flatten(0, 1).numpy()


def assert_fitted_on(run: RunFolder, images: np.ndarray, model: Location, locations: tuple[Location, ...]) -> None:
    got = load_file(run.head_path(model))["mean"].numpy()
    # sums in float64, stored in float32; the extractor itself differs in its last bits with the batch
    np.testing.assert_allclose(got, mean_embedding(run, images, locations), rtol=1e-4, atol=1e-5)


# The six setups at an eighth of their size
SMALL = {
    name: replace(
        setup,
        image_size=tuple(n // 8 for n in setup.image_size),
        tile_size=tuple(n // 8 for n in setup.tile_size),
        stride=tuple(n // 8 for n in setup.stride),
    )
    for name, setup in SETUPS.items()
}
MODELS = {"sm256": 1, "sm512": 1, "st4": 1, "st9": 1, "ens4": 4, "ens9": 9}
MODELS |= {f"{name}+global": MODELS[name] + 1 for name in ("st4", "st9", "ens4", "ens9")}


@pytest.mark.parametrize("name", SETUPS)
def test_every_setup(name, tmp_path):
    setup = SMALL[name]
    run, images = tiny_run(tmp_path / "run", setup)
    assert len(list((run.path / "tile_models").iterdir())) == MODELS[name]
    assert run.missing() == ()
    for model in setup.model_locations:
        served = setup.grid.locations if setup.sharing is Sharing.ALL and model != WHOLE else (model,)
        assert_fitted_on(run, images.fit, model, served)


def test_a_shared_model_sees_all_tiles_and_an_ensemble_its_own(tmp_path):
    st, _ = tiny_run(tmp_path / "st", SMALL["st4"])
    ens, _ = tiny_run(tmp_path / "ens", SMALL["ens4"])
    shared = load_file(st.head_path(Location(0, 0)))["mean"]
    own = [load_file(ens.head_path(location))["mean"] for location in SMALL["ens4"].model_locations]
    torch.testing.assert_close(torch.stack(own).mean(0), shared, rtol=1e-4, atol=1e-5)
    assert all(not torch.allclose(each, shared, rtol=1e-2) for each in own)


def test_tiles_beyond_the_edge_are_padded_with_zeros(tmp_path):
    setup = tile_setup((53, 71), (32, 48), (32, 48))
    run, images = tiny_run(tmp_path / "run", setup)
    assert setup.grid.padded_size == (64, 96)
    for location in setup.model_locations:
        assert_fitted_on(run, images.fit, location, (location,))


def test_locations_are_fitted_one_by_one(tmp_path):
    """A head is on disk before the next location's first batch."""
    images, seen = scene_images(SETUP), []

    def progress(done, total, what):
        if what.startswith("fitting"):
            written = {path.stem for path in (tmp_path / "run").glob("tile_models/*")}
            seen.append((what.removeprefix("fitting "), len(written)))
            assert 0 < done <= total == len(images.fit)

    train(tiny_model(SETUP.tile_size), SETUP, images, tmp_path / "run", seed=0, progress=progress)
    assert seen == [("r00_c00", 0), ("r00_c01", 1), ("r01_c00", 2), ("r01_c01", 3)]


KILLED = """
    import os, signal, sys
    from pathlib import Path

    from tiny_run import scene_images, tile_setup, tiny_model
    from edge_ad.training.trainer import train

    def progress(done, total, what):
        if what == "fitting r01_c00":
            os.kill(os.getpid(), signal.SIGKILL)

    setup = tile_setup()
    train(tiny_model(setup.tile_size, seed=1), setup, scene_images(setup), Path(sys.argv[1]), seed=0, progress=progress)
"""


def test_a_killed_run_continues_where_it_stopped(tmp_path):
    """Random weights at that: the second process draws others, and must take those the run was begun with."""
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)]
    path = {"PYTHONPATH": ":".join([str(Path(__file__).parents[1]), *sys.path])}
    process = subprocess.run(command, env=path, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == -9, process.stderr
    begun = contents(folder)
    heads = {f"tile_models/{name}.safetensors" for name in ("r00_c00", "r00_c01")}
    assert begun.keys() == {"run.json", "extractor.safetensors"} | heads

    fitted = []
    run = train(
        tiny_model(SETUP.tile_size, seed=2),
        SETUP,
        scene_images(SETUP),
        folder,
        seed=0,
        progress=lambda done, total, what: fitted.append(what),
    )
    assert {what for what in fitted if what.startswith("fitting")} == {"fitting r01_c00", "fitting r01_c01"}
    assert run.missing() == ()

    whole = tmp_path / "whole"
    train(tiny_model(SETUP.tile_size, seed=1), SETUP, scene_images(SETUP), whole, seed=0)
    assert contents(folder) == contents(whole)


def test_a_complete_run_is_left_alone(tmp_path):
    run, images = tiny_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    train(tiny_model(SETUP.tile_size), SETUP, images, run.path, seed=0)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_ctrl_c_keeps_what_is_fitted(tmp_path):
    def interrupt(done, total, what):
        if what == "fitting r01_c01":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path / "run", progress=interrupt)
    assert RunFolder.open(tmp_path / "run").missing() == (Location(1, 1),)
    run, _ = tiny_run(tmp_path / "run")
    whole, _ = tiny_run(tmp_path / "whole")
    assert contents(run.path) == contents(whole.path)


def test_other_images_are_not_the_same_run(tmp_path):
    run, images = tiny_run(tmp_path / "run")
    other = replace(images, source=replace(images.source, digest="cd" * 32))
    with pytest.raises(RunMismatchError, match=r"data\.digest"):
        train(tiny_model(SETUP.tile_size), SETUP, other, run.path, seed=0)


def test_the_disk_is_full_at_the_third_location(tmp_path, monkeypatch):
    """As safetensors says it; the run continues when there is space again."""
    save, saved = run_folder.save_file, []

    def full(state, path, remarks=None):
        saved.append(path)
        if len(saved) == 4:  # the extractor and two heads are written
            Path(path).write_bytes(b"half")
            raise run_folder.SafetensorError("I/O error: No space left on device (os error 28)")
        save(state, path, remarks)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_file", full)
        with pytest.raises(OutputWriteError, match=r"cannot write .*r01_c00\.safetensors: .*No space left on device"):
            tiny_run(tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "tile_models").iterdir())
    assert names == ["r00_c00.safetensors", "r00_c01.safetensors"]
    run, _ = tiny_run(tmp_path / "run")
    whole, _ = tiny_run(tmp_path / "whole")
    assert contents(run.path) == contents(whole.path)


def test_options_are_kept(tmp_path):
    run, _ = tiny_run(tmp_path / "run", score_merge=ScoreMerge.MAX, threshold_rule="max", stage=NormalisationStage.TILE)
    settings = RunFolder.open(run.path).settings
    assert (settings.score_merge, settings.threshold_rule) == (ScoreMerge.MAX, "max")
    assert run.normalisation().stage is NormalisationStage.TILE
    assert len(run.normalisation().tile_score) == 4


# --- which images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "fraction", "held"), [(4, 0.15, 2), (20, 0.15, 3), (30, 0.15, 5), (10, 0.5, 5)])
def test_held_out_images_are_a_seeded_draw(count, fraction, held):
    fit, out = hold_out(count, 3, fraction)
    assert len(out) == held
    assert sorted(fit + out) == list(range(count))
    assert fit == sorted(fit)
    assert hold_out(count, 3, fraction) == (fit, out)


def test_every_image_is_held_out_now_and_then():
    drawn = Counter(index for seed in range(200) for index in hold_out(10, seed)[1])
    assert set(drawn) == set(range(10))
    assert max(drawn.values()) < 80  # 40 expected, standard deviation 5.7


def test_held_out_errors():
    with pytest.raises(TooFewImagesError, match="3 normal training images are too few: at least 4"):
        hold_out(3, 0)
    with pytest.raises(TooFewImagesError):
        hold_out(10, 0, 0.9)
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match="--held-out"):
            hold_out(10, 0, fraction)


def read(folder, layout="folder", **options):
    dataset = read_dataset(folder, layout)
    return read_training_images(dataset, SETUP, root=folder, layout=layout, category=None, seed=0, **options)


def test_images_are_split_and_none_is_in_both_parts(tmp_path):
    whole = scene(12, SETUP.image_size)
    images = read(write_images(tmp_path / "data", whole), held_out=0.25)
    fit, out = hold_out(12, 0, 0.25)
    assert np.array_equal(images.fit, whole[fit])
    assert np.array_equal(images.held_out, whole[out])
    assert isinstance(images.fit, np.memmap)  # not in memory
    assert isinstance(images.held_out, np.memmap)
    assert len(set(images.source.training) | set(images.source.held_out)) == 12
    assert images.source.root == str(tmp_path / "data")


def test_a_layout_with_validation_images_holds_those_out(tmp_path):
    whole = scene(8, SETUP.image_size)
    write_images(tmp_path / "train/good", whole[:5])
    write_images(tmp_path / "validation/good", whole[5:])
    images = read(tmp_path, "loco")
    assert np.array_equal(images.fit, whole[:5])
    assert np.array_equal(images.held_out, whole[5:])


def test_the_narrowest_and_the_widest_image_are_remembered(tmp_path):
    for index, width in enumerate((50, 40, 44, 46)):
        write_png(tmp_path / "train/good" / f"{index}.png", np.zeros((20, width, 3), np.uint8))
    assert read(tmp_path / "train/good").source.proportions == (2.0, 2.5)
    write_png(tmp_path / "validation/good/0.png", np.zeros((20, 60, 3), np.uint8))
    assert read(tmp_path, "loco").source.proportions == (2.0, 3.0)


@pytest.fixture
def run_of_files(tmp_path):
    data = write_images(tmp_path / "data", scene(12, SETUP.image_size))
    images = read(data, held_out=0.3)
    return train(tiny_model(SETUP.tile_size), SETUP, images, tmp_path / "run", seed=0), images, data


def test_a_run_finds_its_images_again(run_of_files):
    run, images, _ = run_of_files
    again = run_images(RunFolder.open(run.path))
    assert again.source == images.source
    assert np.array_equal(again.fit, images.fit)
    assert np.array_equal(again.held_out, images.held_out)


def test_a_run_finds_its_images_from_another_folder(tmp_path, monkeypatch):
    write_images(tmp_path / "data", scene(8, SETUP.image_size))
    monkeypatch.chdir(tmp_path)
    run = train(tiny_model(SETUP.tile_size), SETUP, read(Path("data")), Path("run"), seed=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(run_images(RunFolder.open(tmp_path / run.path)).fit) == 6


@pytest.mark.parametrize("change", ["another pixel", "one more", "one less"])
def test_images_that_changed_are_refused(run_of_files, change):
    run, images, data = run_of_files
    if change == "one less":
        (data / "03.png").unlink()
    else:
        name = "03.png" if change == "another pixel" else "99.png"
        (data / name).write_bytes(encode_png(255 - images.fit[0]))
    with pytest.raises(RunMismatchError, match="are not those the run was trained on; put them back, or name --calib"):
        run_images(run)


def test_validation_images_that_changed_are_refused(tmp_path):
    whole = scene(8, SETUP.image_size)
    write_images(tmp_path / "data/train/good", whole[:5])
    write_images(tmp_path / "data/validation/good", whole[5:])
    images = read(tmp_path / "data", "loco")
    run = train(tiny_model(SETUP.tile_size), SETUP, images, tmp_path / "run", seed=0)
    run_images(run)
    (tmp_path / "data/validation/good/01.png").write_bytes(encode_png(255 - whole[0]))
    with pytest.raises(RunMismatchError):
        run_images(run)


def test_images_that_are_gone(run_of_files):
    run, _, data = run_of_files
    data.rename(data.with_name("moved"))
    with pytest.raises(DataNotFoundError, match="not found; the run was trained on it: put it back, or name --cal"):
        run_images(run)
    again = run_images(run, data.with_name("moved"))
    assert again.source.training == run.settings.data.training


def test_calibration_images_are_split_as_training_splits_them(run_of_files, tmp_path):
    run, _, _ = run_of_files
    other = write_images(tmp_path / "other", scene(20, SETUP.image_size, seed=5))
    images = run_images(run, other)
    assert (len(images.fit), len(images.held_out)) == (13, 7)  # a third, as 4 of 12
    assert not set(images.source.training) & set(run.settings.data.training)


def test_a_calibration_folder_that_is_not_there(run_of_files, tmp_path):
    run, _, _ = run_of_files
    with pytest.raises(DataNotFoundError, match=r"nowhere not found$"):
        run_images(run, tmp_path / "nowhere")
    (tmp_path / "empty" / "normal").mkdir(parents=True)
    with pytest.raises(InputError):
        run_images(run, tmp_path / "empty")


def test_every_model_is_counted_before_anything_is_written(tmp_path):
    """The shared model has 4 tiles per image, the global one has one: too few for a batch."""
    setup = replace(SMALL["st4"], global_model=True)
    model = create_model("stfpm", (32, 32), backbone=BACKBONE, weights="none", steps=1, batch_size=12)
    images = scene_images(setup)
    assert 4 * 0.8 * len(images.fit) >= 12
    with pytest.raises(BatchTooLargeError, match="a batch of 12 is larger"):
        train(model, setup, images, tmp_path / "run", seed=0)
    assert not (tmp_path / "run").exists()


def test_losses_are_kept_beside_the_heads(tmp_path):
    images = scene_images(SMALL["ens4"])
    model = create_model("stfpm", (32, 32), backbone=BACKBONE, weights="none", steps=3, batch_size=2)
    run = train(model, SMALL["ens4"], images, tmp_path / "run", seed=0)
    for location in SMALL["ens4"].model_locations:
        (losses,) = run.losses(location)
        assert (losses.stage, len(losses.training)) == ("training", 3)
    assert run.losses(location) == model.losses  # of the location fitted last
    (run.path / "losses" / f"{location.name}.json").write_text("[{}]")
    with pytest.raises(IncompleteRunError, match="missing stage, training, validation, kept_step"):
        run.losses(location)


def test_there_are_no_losses_where_nothing_is_trained_step_by_step(tmp_path):
    run, _ = tiny_run(tmp_path / "run", SMALL["st4"])
    assert run.losses(Location(0, 0)) == ()
    assert not (run.path / "losses").exists()
