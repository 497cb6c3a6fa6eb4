"""Parameter types, options and ways of writing that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_ad import atomic
from edge_ad.bundle.manifest import ALPHAS, InputSpec
from edge_ad.errors import InputError
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.tiling import Size, parse_size

if TYPE_CHECKING:
    from edge_ad.imaging import PixelFormat

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


class AmountType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # as above
    """A finite number of at least 0. Limits of gates: nothing is above NaN, and everything is above -1."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """``value`` as a float."""
        number: float = click.FLOAT.convert(value, param, ctx)
        if not 0 <= number < math.inf:
            self.fail(f"expected a finite number of at least 0, but got {value}", param, ctx)
        return number


def choice(members: type[StrEnum]) -> click.Choice[str]:
    """A choice of an enum's values (click would offer the names of its members)."""
    return click.Choice([str(member) for member in members])


LAYOUTS = ("mvtec", "visa", "loco", "btad", "folder")  # of edge_ad.data.layouts, which an edge box does not import

data_option = click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the data set.")
layout_option = click.option(
    "--layout", type=click.Choice(LAYOUTS), default="mvtec", show_default=True, help="How it is organised."
)
category_option = click.option("--category", help="Category inside the data set, where it has several.")
_BITS, _ALPHA = click.IntRange(8, 16), click.Choice(ALPHAS)
bits_option = click.option("--bits", type=_BITS, help="Significant bits of 16-bit files.  [default: 16]")
alpha_option = click.option("--alpha", type=_ALPHA, default="drop", show_default=True, help="Alpha channels.")
trained_bits_option = click.option(
    "--bits", type=_BITS, help="Significant bits of 16-bit files.  [default: as in training]"
)
trained_alpha_option = click.option("--alpha", type=_ALPHA, help="Alpha channels.  [default: as in training]")
device_option = click.option(
    "-d",
    "--device",
    default="CPU",
    show_default=True,
    callback=lambda _context, _option, name: name.upper(),  # as engines write them; torch's names go in either case too
    help="CPU, GPU, GPU.1, NPU, AUTO, CUDA, CUDA:1, TENSORRT.",
)
precision_option = click.option(
    "--precision",
    type=choice(ExecutionPrecision),
    default="auto",
    show_default=True,
    help="What float parts execute in; auto: the device's default, but f32 where graphs need it or bf16 is slow.",
)
signature_option = click.option(
    "--require-signature",
    "require_signature",
    metavar="PUBKEY",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Refuse a bundle that is not signed by the owner of this Ed25519 key, a PEM file.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads of inference.  [default: the engine's]"
)
memory_option = click.option(
    "--memory-budget", metavar="SIZE", help="Heads that do not fit, such as in 300MB, take turns.  [default: all fit]"
)
cache_dir_option = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Folder for graphs that OpenVINO or TensorRT has compiled, and for heads that a memory budget keeps aside.",
)
json_option = click.option(
    "--json",
    "json_target",
    type=click.Path(allow_dash=True),
    help="Write JSON here, beside the text; - for stdout, in its place.",
)


def write_json(target: str, value: Any) -> None:
    """JSON to stdout where ``target`` is "-", else to that file, atomically. Raises `OutputWriteError`."""
    if target == "-":
        click.echo(json.dumps(value, indent=2, allow_nan=False))
    else:
        atomic.write_json(Path(target), value)


def check_targets(*targets: str | Path | None) -> None:
    """`atomic.check_writable` of what is written once the work is done: of all but None, and "-" for stdout."""
    for target in targets:
        if target is not None and target != "-":
            atomic.check_writable(Path(target))


def write_table(rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Rows to stdout, columns padded to one width; those whose numbers are in ``right`` to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join(padded).rstrip())


def pixel_format(trained: InputSpec, bits: int | None, alpha: str | None) -> PixelFormat:
    """How files are read: as those a model was ``trained`` on were, but for what the command line says."""
    from edge_ad.imaging import Alpha, PixelFormat

    return PixelFormat(bits or trained.bits, Alpha(alpha or trained.alpha))
