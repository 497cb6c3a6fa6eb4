"""Writes docs/cli.md from the help of every command: ``make docs``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_ad.cli import COMMANDS, group

TARGET = Path(__file__).with_name("cli.md")
WIDTH = 100
HEADER = """\
# Command line

Written by `make docs` from the commands' own help; a test fails when it is stale.
"""


def render() -> str:
    """The page as markdown."""
    with click.Context(group, info_name="edge-ad", terminal_width=WIDTH, **group.context_settings) as parent:
        sections = [HEADER, _section("edge-ad", group.get_help(parent))]
        for name in COMMANDS:
            command = group.get_command(parent, name)
            assert command is not None
            with click.Context(command, parent, info_name=name, **command.context_settings) as context:
                sections.append(_section(f"edge-ad {name}", command.get_help(context)))
    return "\n".join(sections)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n```\n{text}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
