from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest

from edge_ad.progress import MOST_BARS, no_progress, terminal_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Puts a terminal in the place of stderr. To be called in the test: pytest sets stderr anew after the fixtures."""

    def make() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        return stream

    return make


def last_frame(terminal: Terminal) -> list[str]:
    """The lines that stand on the terminal in the end, without colours."""
    frame = terminal.getvalue().rpartition("\x1b[2K")[2]  # every frame first erases the one before, line by line
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame)
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_a_bar_per_kind_of_work(make_terminal):
    terminal = make_terminal()
    with terminal_progress() as progress:
        for done in range(1, 4):
            progress(done, 3, "decoding images")
        progress(5, 9, "fitting tiles")
    decoding, fitting = last_frame(terminal)
    assert re.match(r"decoding images +━+ +3/3 +0:00:\d\d$", decoding)
    assert re.match(r"fitting tiles +[━╸╺ ]+ +5/9 +", fitting)


def test_a_plain_line_where_rich_is_missing(make_terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal = make_terminal()
    with terminal_progress() as progress:
        for done in range(1, 4):
            progress(done, 3, "images")
    assert [line.strip() for line in terminal.getvalue().split("\r")[1:]] == [
        "images: 1/3",
        "images: 2/3",
        "images: 3/3",
    ]


def test_work_of_the_same_kind_uses_its_bar_again(make_terminal):
    terminal = make_terminal()
    with terminal_progress() as progress:
        progress(3, 3, "decoding images")
        progress(1, 7, "decoding images")
    (line,) = last_frame(terminal)
    assert " 1/7 " in line


def test_what_follows_a_comma_is_shown_and_makes_no_bar(make_terminal):
    terminal = make_terminal()
    with terminal_progress() as progress:
        for step in range(1, 40):
            progress(step, 50, f"distilling, loss {1 / step:.4f}")
    (line,) = last_frame(terminal)
    assert re.match(r"distilling, loss 0\.0256 +[━╸╺ ]+ +39/50 +", line)


def test_the_newest_bars_are_those_on_the_screen(make_terminal):
    """A screen of 25 lines, on which more would hide what is being done; a bar that is told of again stays."""
    terminal = make_terminal()
    with terminal_progress() as progress:
        for tile in range(60):
            progress(tile, 60, "tiles")
            progress(1, 1, f"exporting {tile:02d}")
    names = [re.split(r" {2,}", line)[0] for line in last_frame(terminal)]
    newest = [f"exporting {tile:02d}" for tile in range(60 - MOST_BARS + 1, 60)]
    assert names == ["tiles", *newest]


def test_nothing_is_drawn_where_it_is_not_wanted(make_terminal):
    terminal = make_terminal()
    with terminal_progress(enabled=False) as progress:
        assert progress is no_progress
        progress(1, 2, "decoding images")
    assert terminal.getvalue() == ""


def test_nothing_is_drawn_where_stderr_is_no_terminal(capsys):
    with terminal_progress() as progress:
        assert progress is no_progress
        progress(1, 2, "decoding images")
    assert capsys.readouterr() == ("", "")


def test_an_error_leaves_the_terminal_in_order(make_terminal):
    terminal = make_terminal()

    def work() -> None:
        with terminal_progress() as progress:
            progress(1, 2, "decoding images")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        work()
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is back
