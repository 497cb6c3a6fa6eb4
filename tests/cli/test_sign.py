from __future__ import annotations

import pytest
from signing_keys import write_keys

from edge_ad.data.synthetic import write_synthetic


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path, "release")


@pytest.fixture(params=["option", "environment"])
def required(request, monkeypatch, keys):
    """What to add to a command, so that a signature is required."""
    if request.param == "option":
        return ("--require-signature", keys[1])
    monkeypatch.setenv("EDGE_AD_REQUIRE_SIGNATURE", str(keys[1]))
    return ()


def test_sign_and_require(run, bundle, images, tmp_path, keys, required):
    """Each command that loads a bundle refuses it until it is signed."""
    private, public = keys
    commands = {
        "predict": (bundle, images, "-o", tmp_path / "out", "--overwrite"),
        "verify": (bundle,),
        "inspect": (bundle,),
        "threshold": (bundle, "--good", images, "-o", tmp_path / "new"),
        "benchmark": (bundle, "--iterations", 2, "--warmup", 1, "--batch", 0),
    }
    for name, arguments in commands.items():
        code, out, err = run(name, *arguments, *required)
        assert (code, out) == (2, ""), name
        assert "a signature is required, and manifest.sig cannot be read" in err, name
    code, out, err = run("sign", bundle, "--key", private)
    assert (code, out, err) == (0, f"{bundle / 'manifest.sig'}: signed\n", "")
    for name, arguments in commands.items():
        assert run(name, *arguments, *required).code == 0, name
    assert f"signed by the owner of {public}" in run("verify", bundle, *required).out
    assert run("verify", tmp_path / "new", *required).code == 2  # thresholds of its own, and no signature yet
    assert run("sign", tmp_path / "new", "--key", private).code == 0
    assert run("verify", tmp_path / "new", *required).code == 0


def test_evaluate_requires_a_signature_of_bundles_only(run, bundle, tmp_path, keys):
    private, public = keys
    plates = write_synthetic(tmp_path / "plates", size=(64, 64), train=1, test_good=1, test_defective=1)
    arguments = ("--data", plates, "--layout", "mvtec", "--require-signature", public)
    assert "a signature is required" in run("evaluate", bundle, *arguments).err
    run("sign", bundle, "--key", private)
    assert run("evaluate", bundle, *arguments).code == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    code, _, err = run("evaluate", tmp_path / "run", *arguments)
    assert code == 2
    assert "is a run, and only bundles are signed; leave --require-signature out" in err


def test_a_changed_bundle_is_not_signed(run, bundle, keys):
    (bundle / "extra").touch()
    code, _, err = run("sign", bundle, "--key", keys[0])
    assert (code, "extra is not named in the manifest" in err) == (2, True)
    assert not (bundle / "manifest.sig").exists()


@pytest.mark.parametrize(("command", "option"), [("sign", "--key"), ("verify", "--require-signature")])
def test_a_key_that_is_not_there_is_named_by_its_option(run, bundle, command, option):
    code, out, err = run(command, bundle, option, "nokey")
    assert (code, out) == (2, "")
    assert err == (
        f"error: Invalid value for '{option}': File 'nokey' does not exist. See 'edge-ad {command} --help'.\n"
    )
