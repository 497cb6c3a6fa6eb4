"""The run folder: what is written comes back, what was begun otherwise or damaged is refused in one line."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from file_system import file_size_limit
from safetensors.torch import load_file, save_file
from tiny_methods import tiny
from tiny_run import BACKBONE, scene_images, tile_setup, tiny_model, tiny_run

from edge_ad import atomic
from edge_ad.bundle.manifest import NormalisationStage, ScoreMerge
from edge_ad.errors import IncompleteRunError, OutputWriteError, RunMismatchError, WrongWeightsError
from edge_ad.methods import create_model
from edge_ad.tiling import Location
from edge_ad.training.run_folder import SCHEMA_VERSION, RunFolder, RunSettings, load_tensors, save_tensors

SETUP = tile_setup()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run, _ = tiny_run(tmp_path_factory.mktemp("trained") / "run")
    return run.path


@pytest.fixture
def run(trained, tmp_path):
    """A complete run that the test may damage."""
    return RunFolder.open(shutil.copytree(trained, tmp_path / "run"))


def settings(model, **changes):
    return replace(
        RunSettings(
            schema_version=SCHEMA_VERSION,
            method="padim",
            config=model.config,
            weights=model.weights_source,
            setup=SETUP,
            seed=0,
            data=scene_images(SETUP).source,
            score_merge=ScoreMerge.MEAN,
            threshold_rule="sigma:3",
            normalisation_stage=NormalisationStage.IMAGE,
        ),
        **changes,
    )


def test_what_is_in_it(trained):
    files = sorted(path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file())
    heads = [f"tile_models/{location.name}.safetensors" for location in SETUP.model_locations]
    assert files == ["extractor.safetensors", "normalisation.json", "run.json", *heads]


def test_settings_come_back_exactly(tmp_path):
    model = tiny_model(SETUP.tile_size)
    begun = RunFolder.begin(tmp_path / "run", settings(model), model)
    opened = RunFolder.open(tmp_path / "run")
    assert opened == begun
    assert isinstance(opened.settings.setup.model_locations[0], Location)
    assert opened.missing() == SETUP.model_locations
    assert not opened.has_normalisation


def test_the_extractor_comes_back_bit_for_bit(run):
    own, again = tiny_model(SETUP.tile_size).extractor.state_dict(), run.model().extractor.state_dict()
    assert own.keys() == again.keys()
    counted = {key for key in own if key.endswith("num_batches_tracked")}  # of training only
    assert all(torch.equal(own[key], again[key]) for key in own.keys() - counted)


def test_a_head_comes_back_bit_for_bit(run):
    model = run.model()
    head = run.head(model, Location(1, 0))
    run.write_head(Location(0, 1), head)
    again = run.head(model, Location(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), again.state_dict().values(), strict=True))


def test_other_settings_are_named(tmp_path):
    model = tiny_model(SETUP.tile_size)
    first = settings(model)
    RunFolder.begin(tmp_path / "run", first, model)
    source = replace(first.data, training=first.data.training[1:])
    with pytest.raises(RunMismatchError) as caught:
        RunFolder.begin(
            tmp_path / "run", replace(first, seed=3, data=source, setup=replace(SETUP, stride=(16, 24))), model
        )
    message = str(caught.value)
    for part in ("seed: 0 there, 3 here", "setup.stride: [32, 48] there, [16, 24] here", "data.training differs"):
        assert part in message
    assert "score_merge" not in message
    assert "\n" not in message


def test_a_new_setting_is_named_too(tmp_path):
    model = tiny_model(SETUP.tile_size)
    RunFolder.begin(tmp_path / "run", settings(model), model)
    with pytest.raises(RunMismatchError, match=r"config\.colour: None there, 'red' here"):
        RunFolder.begin(tmp_path / "run", settings(model, config={**model.config, "colour": "red"}), model)


def edit_settings(run, edit):
    value = json.loads((run / "run.json").read_text())
    edit(value)
    (run / "run.json").write_text(json.dumps(value))


def test_runs_that_do_not_say_their_images_proportions_go_on(tmp_path):
    """Those of before they were written: what is not known is not another."""
    model = tiny_model(SETUP.tile_size)
    narrow, wide = (
        settings(model, data=replace(scene_images(SETUP).source, proportions=(each, each))) for each in (1.5, 2.0)
    )
    run = RunFolder.begin(tmp_path / "run", narrow, model).path
    with pytest.raises(RunMismatchError, match=r"data\.proportions: \[1\.5, 1\.5\] there, \[2\.0, 2\.0\] here"):
        RunFolder.begin(run, wide, model)
    edit_settings(run, lambda value: value["data"].pop("proportions"))
    RunFolder.begin(run, wide, model)
    with pytest.raises(RunMismatchError, match="seed: 0 there, 3 here"):
        RunFolder.begin(run, replace(wide, seed=3), model)


@pytest.mark.parametrize("method", ["efficient_ad", "efficient_ad_ast"])
def test_photographs_that_changed_are_refused(method, tmp_path):
    """Heads trained with these and with those would be mixed. Runs of before do not say which they had."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "a.png").write_bytes(b"1")

    def begin():
        model = tiny(method, penalty_images=str(photographs))
        return RunFolder.begin(tmp_path / "run", settings(model, method=method), model)

    begun = begin()
    assert begin() == begun == RunFolder.open(begun.path)
    (photographs / "b.png").write_bytes(b"22")
    with pytest.raises(RunMismatchError, match=r"\(photographs: '.*' there, '.*' here\); choose another -o"):
        begin()
    edit_settings(begun.path, lambda value: value.pop("photographs"))
    begin()


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear all")
    model = tiny_model(SETUP.tile_size)
    with pytest.raises(RunMismatchError, match="not empty and not a run folder"):
        RunFolder.begin(tmp_path, settings(model), model)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_random_weights_are_those_the_run_was_begun_with(tmp_path):
    """Without weights every process draws others: heads of both would be fitted on different features."""
    first, second = tiny_model(SETUP.tile_size, seed=1), tiny_model(SETUP.tile_size, seed=2)
    RunFolder.begin(tmp_path / "run", settings(first), first)
    RunFolder.begin(tmp_path / "run", settings(second), second)
    image = torch.randint(0, 256, (1, 32, 48, 3), dtype=torch.uint8)
    assert torch.equal(first.extract(image)[0], second.extract(image)[0])


def test_named_weights_that_changed_are_refused(tmp_path):
    first, second = tiny_model(SETUP.tile_size, seed=1), tiny_model(SETUP.tile_size, seed=2)
    RunFolder.begin(tmp_path / "run", settings(first, weights="w.safetensors"), first)
    with pytest.raises(RunMismatchError, match=r"begun with other weights than this w\.safetensors"):
        RunFolder.begin(tmp_path / "run", settings(second, weights="w.safetensors"), second)
    RunFolder.begin(tmp_path / "run", settings(first, weights="w.safetensors"), first)


def test_killed_between_settings_and_extractor(tmp_path):
    model = tiny_model(SETUP.tile_size)
    begun = RunFolder.begin(tmp_path / "run", settings(model), model)
    (begun.path / "extractor.safetensors").unlink()
    assert RunFolder.begin(begun.path, settings(model), model) == begun
    assert (begun.path / "extractor.safetensors").exists()


def test_heads_without_their_extractor(run):
    (run.path / "extractor.safetensors").unlink()
    model = tiny_model(SETUP.tile_size, seed=5)
    with pytest.raises(IncompleteRunError, match=r"extractor\.safetensors is missing"):
        RunFolder.begin(run.path, run.settings, model)
    assert not (run.path / "extractor.safetensors").exists()


def test_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(IncompleteRunError, match=r"is not a run folder: no run\.json; make one with edge-ad train"):
            RunFolder.open(path)


def test_incomplete_runs_name_what_is_missing(run):
    (run.path / "normalisation.json").unlink()
    with pytest.raises(IncompleteRunError, match=r"\(thresholds missing\)"):
        run.normalisation()
    run.head_path(Location(0, 1)).unlink()
    run.head_path(Location(1, 1)).unlink()
    assert run.missing() == (Location(0, 1), Location(1, 1))
    with pytest.raises(IncompleteRunError, match=r"\(r00_c01, r01_c01 missing\); run the same edge-ad train again"):
        run.normalisation()
    with pytest.raises(IncompleteRunError, match=r"r00_c01\.safetensors is missing"):
        run.head(run.model(), Location(0, 1))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b'{"seed": 0}'])
def test_damaged_settings(run, content):
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(IncompleteRunError, match=r"run\.json") as caught:
        RunFolder.open(run.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"stage": "image"}'])
def test_damaged_thresholds(run, content):
    (run.path / "normalisation.json").write_bytes(content)
    with pytest.raises(IncompleteRunError, match=r"normalisation\.json"):
        run.normalisation()


def test_settings_of_another_release(run):
    value = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**value, "colour": "red"}))
    with pytest.raises(IncompleteRunError, match=r"run\.json: unknown colour"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_tensors_that_are_not_finite(run, bad):
    path = run.head_path(Location(0, 0))
    state = load_file(path)
    key = next(key for key, value in state.items() if value.is_floating_point())
    state[key].flatten()[0] = bad
    save_file(state, path)
    with pytest.raises(WrongWeightsError, match=rf"r00_c00\.safetensors: '{key}' holds NaN or infinity; delete it"):
        run.head(run.model(), Location(0, 0))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_tensors(run, keep):
    path = run.head_path(Location(0, 0))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WrongWeightsError, match=r"r00_c00\.safetensors is damaged: .*; delete it and run"):
        run.head(run.model(), Location(0, 0))


def test_an_extractor_of_another_network(run):
    other = create_model("padim", SETUP.tile_size, backbone="test_efficientnet", weights="none", dimensions=9)
    other_run = replace(run, settings=replace(run.settings, config=other.config))
    with pytest.raises(WrongWeightsError, match=r"extractor\.safetensors: weights of another architecture: no tensor"):
        other_run.model()


def test_a_head_of_another_tile_size_or_method(run):
    path = run.head_path(Location(0, 0))
    other = create_model("padim", (64, 48), backbone=BACKBONE, weights="none", dimensions=9)
    with pytest.raises(WrongWeightsError, match=r"r00_c00\.safetensors is no head of padim for these tiles") as caught:
        run.head(other, Location(0, 0))
    assert "\n" not in str(caught.value)
    save_file({"teacher.weight": torch.ones(2)}, path)
    with pytest.raises(WrongWeightsError, match="is no head of padim for these tiles"):
        run.head(run.model(), Location(0, 0))


def full_disk_on_flush(monkeypatch):
    def fsync(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", fsync)


def test_a_full_disk_leaves_the_run_as_it_was(run, monkeypatch):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    head, thresholds = run.head(run.model(), Location(0, 0)), run.normalisation()
    run.head_path(Location(0, 1)).unlink()
    full_disk_on_flush(monkeypatch)
    with pytest.raises(OutputWriteError, match=r"cannot write .*r00_c01\.safetensors: No space left on device"):
        run.write_head(Location(0, 1), head)
    with pytest.raises(OutputWriteError, match=r"cannot write .*normalisation\.json: No space left on device"):
        run.write_normalisation(thresholds)
    before.pop(run.head_path(Location(0, 1)))
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_safetensors_meets_the_end_of_the_disk(tmp_path):
    """Really: the process may write 10 kB per file, as a full disk would stop it in the middle of one."""
    with (
        file_size_limit(10_000),
        pytest.raises(OutputWriteError, match=r"cannot write .*big\.safetensors: .*File too large"),
    ):
        save_tensors(tmp_path / "big.safetensors", {"a": torch.zeros(10_000)})
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_are_views(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    save_tensors(tmp_path / "a.safetensors", {"t": whole.T, "part": whole[1:, ::2]})
    again = load_tensors(tmp_path / "a.safetensors")
    assert torch.equal(again["t"], whole.T)
    assert torch.equal(again["part"], whole[1:, ::2])
