"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edge_ad.tiling import Size, parse_size


class SizeType(click.ParamType):
    """``512x640`` (height x width), or ``512`` for a square."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """See `parse_size`."""
        return value if isinstance(value, tuple) else parse_size(value)


SIZE = SizeType()


def data_options(required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--data``, ``--layout``, ``--category``, ``--bits``, ``--alpha``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            [
                click.option("--data", type=click.Path(), required=required, help="Folder of the data set."),
                click.option(
                    "--layout",
                    type=click.Choice(["mvtec", "visa", "loco", "btad", "folder"]),
                    default="mvtec" if required else None,
                    show_default=required,
                    help="How the folder is organised." + ("" if required else "  [default: the run's]"),
                ),
                click.option("--category", help="Category inside the data set, where it has several."),
            ]
        ):
            function = option(function)
        return function

    return decorate
