from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

import edge_ad
from edge_ad import cli
from edge_ad.cli import options
from edge_ad.data.layouts import LAYOUTS
from edge_ad.doctor import ENGINE_PACKAGES
from edge_ad.errors import BundleError, DeviceNotFoundError, EdgeAdError, GateError
from edge_ad.imaging import Alpha


@pytest.fixture
def raising(monkeypatch):
    """Plants the command ``edge-ad planted``, which raises."""

    def plant(error: BaseException) -> None:
        @click.command("planted")
        def command() -> None:
            raise error

        module = ModuleType("edge_ad.cli.planted")
        module.command = command
        monkeypatch.setitem(cli.COMMANDS, "planted", "Planted.")
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return plant


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (EdgeAdError("it\n  broke"), 1, "error: it broke"),
        (BundleError("bad"), 2, "error: bad"),
        (GateError("worse"), 3, "error: worse"),
        (DeviceNotFoundError("no GPU"), 4, "error: no GPU"),
        (OSError(errno.ENOSPC, "No space left on device", "out.json"), 1, "error: out.json: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: output: No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "out.json"), 1, "error: out.json: Disk quota exceeded"),
        (OSError(errno.EACCES, "Permission denied", "out.json"), 1, "error: out.json: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "out.json"), 1, "error: out.json: Read-only file system"),
        (click.UsageError("which?"), 2, "error: which? See 'edge-ad planted --help'."),
    ],
)
def test_a_known_error_is_one_line_and_a_code(run, raising, error, code, line):
    raising(error)
    assert run("planted") == (code, "", line + "\n")


def test_interrupted(run, raising):
    raising(KeyboardInterrupt())
    code, out, err = run("planted")
    assert (code, out, err.strip()) == (130, "", "interrupted")


def test_a_missing_package_is_the_training_extra(run, raising):
    raising(ModuleNotFoundError("No module named 'timm'", name="timm.layers"))
    code, out, err = run("planted")
    assert (code, out) == (4, "")
    remedy = "pip install '.[train]' in a checkout of edge-ad"
    assert err == f"error: this command needs the training extra (timm is missing): {remedy}\n"


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), ModuleNotFoundError("a bug", name="edge_ad.nix"), OSError(errno.EIO, "a bug")]
)
def test_an_unknown_error_keeps_its_traceback(raising, error):
    raising(error)
    with pytest.raises(type(error), match="a bug"):
        cli.main(["planted"])


def test_verbose_shows_where_an_error_comes_from(run, raising):
    raising(GateError("worse"))
    code, _, err = run("--verbose", "planted")
    assert code == 3
    assert err.startswith("Traceback")
    assert "raise error" in err
    assert err.endswith("error: worse\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["nix"], "error: No such command 'nix'. See 'edge-ad --help'."),
        (["--nix"], "error: No such option '--nix'. See 'edge-ad --help'."),
        (["verify"], "error: Missing argument 'BUNDLE'. See 'edge-ad verify --help'."),
        (["verify", "x", "--precision", "f8"], "error: Invalid value for '--precision': 'f8' is not one of"),
    ],
)
def test_usage_errors_are_one_line_too(run, arguments, hint):
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(hint)


def test_without_a_command_the_help_goes_to_stderr(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: edge-ad")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(run, flag):
    code, out, err = run(flag)
    assert (code, err) == (0, "")
    assert all(name in out for name in cli.COMMANDS)


def test_version(run):
    assert run("--version") == (0, f"edge-ad {edge_ad.__version__}\n", "")
    verbose = run("-v", "--version").out.splitlines()
    assert [line.split()[0] for line in verbose[1:]] == list(ENGINE_PACKAGES)
    assert run("--version", "-v").out.splitlines() == verbose


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_table_of_short_helps_is_that_of_the_commands(name):
    command = cli.group.get_command(click.Context(cli.group), name)
    assert command.get_short_help_str(limit=200) == cli.COMMANDS[name]


def test_options_come_from_the_environment_too(run, monkeypatch, tiny_bundle):
    monkeypatch.setenv("EDGE_AD_VERIFY_DEVICE", "GPU.7")
    code, _, err = run("verify", tiny_bundle())
    assert code == 4
    assert "GPU.7" in err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_has_the_variable_of_its_flag(name):
    command = cli.group.get_command(click.Context(cli.group), name)
    for option in command.params:
        if isinstance(option, click.Option):
            flags = [flag.removeprefix("--").replace("-", "_").upper() for flag in option.opts]
            assert option.envvar in [f"EDGE_AD_{name.upper()}_{flag}" for flag in flags]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_says_what_it_is(name):
    command = cli.group.get_command(click.Context(cli.group), name)
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


def test_no_version_of_a_container_is_an_option(run, monkeypatch, tiny_bundle):
    """A gate must not pass because EDGE_AD_VERSION is set."""
    bundle = tiny_bundle()
    for value in ("1", "0.1.0"):
        monkeypatch.setenv("EDGE_AD_VERSION", value)
        assert run("inspect", bundle).code == 0
        assert run("verify", "nothing").code == 2


def test_quiet_silences_remarks(run, tiny_bundle, images, tmp_path):
    bundle = tiny_bundle()
    assert "2 inspected" in run("predict", bundle, images, "-o", tmp_path / "loud").err
    assert run("--quiet", "predict", bundle, images, "-o", tmp_path / "quiet").err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        process = _edge_ad("devices", stdout=full)
    assert process.communicate()[1] == "error: output: No space left on device\n"
    assert process.returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_a_reader_who_has_left_is_no_failure():
    process = _edge_ad("devices", stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_a_broken_tiff_is_one_line_although_opencv_has_more_to_say(tmp_path):
    (tmp_path / "train" / "good").mkdir(parents=True)
    (tmp_path / "train" / "good" / "a.tif").write_bytes(b"II*\0" + bytes.fromhex("ff000000") + bytes(64))
    process = _edge_ad(
        *("train", "--data", str(tmp_path), "--image-size", "native", "-o", str(tmp_path / "run")),
        stdout=subprocess.PIPE,
    )
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(
        r"error: \S+a\.tif: not a readable image \(its header is cut off\); remove it or save it again\n", err
    )


def _edge_ad(*arguments, stdout):
    code = "from edge_ad.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_choices_written_out_are_those_of_their_rooms():
    """Spelt out in options.py so that a command need not import the room."""
    assert set(options.LAYOUTS) == set(LAYOUTS)
    assert set(options.ALPHAS) == {str(alpha) for alpha in Alpha}
