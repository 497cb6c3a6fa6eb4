"""What the documents print: their commands parse, their scripts and files are there, their Python is Python."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from edge_ad.cli import group

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("samples/*.md"))]
EXPERIMENTS = sorted(ROOT.glob("benchmarks/experiments/*.toml"))
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:edge-ad|python) [^`]+)`")
LEFT_OUT = "..."  # the reader fills in what the page does not repeat


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCED.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command: in fenced blocks of a page, in the comments at the head of a TOML file."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".toml":
        texts = ["\n".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))]
    else:
        texts = blocks(page, "")
    for lines in texts:
        for line in lines.replace("\\\n", " ").splitlines():
            if line.startswith(("edge-ad ", "python ")):
                yield shlex.split(line, comments=True)


def spans(page: Path) -> Iterator[list[str]]:
    """Words of every command inside a sentence, of which most name only what the sentence is about."""
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    return (match.replace("\n", " ").split() for match in SPAN.findall(prose))


def named(words: list[str]) -> click.Command:
    command = group.get_command(click.Context(group), words[1])
    assert command is not None, f"no command {words[1]}"
    return command


def check_options(words: list[str]) -> None:
    """Does what is called have these options? A command's are known, a script's are read in its source."""
    flags = {re.split("[=,.;]", word)[0] for word in words if re.match("--?[a-z]", word)}
    if words[0] == "edge-ad":
        known = {flag for parameter in (*named(words).params, *group.params) for flag in parameter.opts}
        assert flags <= known | {"--help", "-h"}
    else:
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{flag}"' in script for flag in flags)


def check(words: list[str]) -> None:
    """Raises what click raises, or `AssertionError`, where a command cannot be meant."""
    assert all((ROOT / word).exists() for word in words if word.startswith("benchmarks/"))
    check_options(words)
    if words[0] == "edge-ad" and LEFT_OUT not in words:
        with named(words).make_context(words[1], words[2:], parent=click.Context(group, **group.context_settings)):
            pass


@pytest.fixture
def _files_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages name files of their own."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, *context: value)


def test_there_is_something_to_check() -> None:
    assert len([words for page in (*PAGES, *EXPERIMENTS) for words in commands(page)]) > 50
    assert len([words for page in PAGES for words in spans(page)]) > 20


@pytest.mark.usefixtures("_files_are_there")
@pytest.mark.parametrize("page", [*PAGES, *EXPERIMENTS], ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        try:
            check(words)
        except (click.UsageError, AssertionError, OSError) as error:
            pytest.fail(f"{shlex.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page: Path) -> None:
    for words in spans(page):
        try:
            check_options(words)
        except (AssertionError, OSError) as error:
            pytest.fail(f"{' '.join(words)}: {error}")


@pytest.mark.usefixtures("_files_are_there")
@pytest.mark.parametrize(
    "line",
    [
        "edge-ad learn --data DIR -o run",
        "edge-ad train --data DIR",
        "edge-ad train --data DIR --tiles 9 -o run",
        "edge-ad train ... --tiles 9 -o run",
        "edge-ad train --data DIR --setup ens10 -o run",
        "edge-ad train bolts --data DIR -o run",
        "edge-ad experiment benchmarks/experiments/nix.toml -o out",
        "python benchmarks/robustness/nix.py",
        "python benchmarks/robustness/stream.py B.edgead --nix 3",
    ],
)
def test_a_planted_mistake_is_found(line: str) -> None:
    with pytest.raises((click.UsageError, AssertionError, OSError)):
        check(line.split())


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("samples/*.py")], ids=lambda page: page.name)
def test_what_is_installed_is_the_checkout(page: Path) -> None:
    """Nothing is released: no index has the package."""
    assert "install edge-ad" not in (text := page.read_text(encoding="utf-8"))
    assert "install 'edge-ad" not in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page: Path) -> None:
    for source in blocks(page, "python"):
        compile(source, page.name, "exec")


def test_the_first_python_of_the_readme_runs(
    tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundle(name="bolt.edgead")
    monkeypatch.chdir(tmp_path)
    source = blocks(ROOT / "README.md", "python")[0]
    assert source.count("camera = ...") == 1
    frame = np.full((80, 100, 3), 90, np.uint8)
    names: dict[str, Any] = {"frame": frame, "frames": [frame] * 3}
    exec(source.replace("camera = ...", "camera = frames"), names)
    assert 0 <= names["score"] <= 1
    assert names["heat"].shape == names["mask"].shape
