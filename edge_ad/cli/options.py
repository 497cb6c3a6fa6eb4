"""Parameter types and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import click

from edge_ad.errors import InputError
from edge_ad.tiling import Size, parse_size

NATIVE = "native"


class SizeType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4 on
    """``512x640`` (height x width), or ``512`` for a square."""

    name = "HxW"

    def __init__(self, *, native: bool = False) -> None:
        self.native = native

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size | str:
        """See `parse_size`."""
        if isinstance(value, tuple):
            return value
        if self.native and value == NATIVE:
            return NATIVE
        try:
            return parse_size(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


def choice(members: type[StrEnum]) -> click.Choice[str]:
    """A choice of an enum's values (click would offer the names of its members)."""
    return click.Choice([str(member) for member in members])


LAYOUTS = ("mvtec", "visa", "loco", "btad", "folder")  # of edge_ad.data.layouts, which an edge box does not import
