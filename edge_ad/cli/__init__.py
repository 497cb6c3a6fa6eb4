"""The command line: one file per command, no logic.

A command's module is imported when it is called: ``edge-ad --help`` loads neither an engine nor torch, and an edge box
runs ``predict`` without the training extra.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from edge_ad import __version__
from edge_ad.errors import EdgeAdError, ExtraMissingError, pip_install

# Name and short help, the first sentence of the command's own: a test compares them.
COMMANDS = {
    "train": "Fit a method on normal images, one tile model after the other.",
    "methods": "List the methods, or the parameters of one.",
    "distill": "Teach EfficientAD's small teacher what a large network knows.",
    "evaluate": "Measure a run or a bundle on labelled test images.",
    "export": "Turn a run into a bundle for the edge.",
    "threshold": "Fit a bundle's thresholds anew, on images from the line.",
    "sign": "Sign a bundle, so that a line can require it.",
    "tile": "Write a tile of a bundle as one model for OpenVINO Model API.",
    "predict": "Inspect images: scores, overlays, masks.",
    "benchmark": "Time bundles by the EfficientAD protocol.",
    "compare": "Tell what changed between two benchmarks.",
    "verify": "Prove that a bundle is unchanged and computes what it should.",
    "inspect": "Show what is in a bundle.",
    "devices": "List what there is to run on.",
    "doctor": "Check this installation.",
    "experiment": "Run a grid of data sets, methods, setups and seeds, and set it in tables.",
    "demo": "Run the whole road on synthetic plates.",
}
INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + SIGINT, 128 + SIGPIPE: what a shell reports

_BASE_PACKAGES = ("edge_ad", "numpy", "cv2", "click")


class LazyGroup(click.Group):
    """Imports ``edge_ad.cli.<name>`` when the command ``<name>`` is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The attribute ``command`` of the command's module."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        for option in command.params:
            if isinstance(option, click.Option):
                flag = max(option.opts, key=len).lstrip("-")
                option.envvar = f"EDGE_AD_{cmd_name}_{flag}".replace("-", "_").upper()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """`COMMANDS`, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """As click's, but a reader who has left (``edge-ad ... | head``) is no failure: click would exit with 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at exit
            ctx.exit(PIPE_CLOSED)


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    click.echo(f"edge-ad {__version__}")
    if ctx.params.get("verbose"):
        from edge_ad.doctor import ENGINE_PACKAGES, installed_version

        for package in ENGINE_PACKAGES:
            click.echo(f"{package} {installed_version(package) or 'not installed'}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "-v", "--verbose", is_flag=True, is_eager=True, envvar="EDGE_AD_VERBOSE", help="Show where an error comes from."
)
@click.option("-q", "--quiet", is_flag=True, envvar="EDGE_AD_QUIET", help="No progress bars, no remarks.")
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version; -v: engines' too.",
)
@click.pass_context
def group(ctx: click.Context, verbose: bool, quiet: bool) -> None:
    """Visual anomaly detection on the edge: train, evaluate, export, run and benchmark tile models.

    Exit codes: 0 done; 1 the run failed; 2 usage or bad input; 3 a gate was not met; 4 device, engine or extra missing.
    Every option of a command can be set in the environment: EDGE_AD_PREDICT_DEVICE=GPU is predict --device GPU; so can
    EDGE_AD_QUIET and EDGE_AD_VERBOSE.
    """
    ctx.ensure_object(dict).update(verbose=verbose, quiet=quiet)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point. A known error becomes one line on stderr and its exit code; an unknown one keeps its traceback."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # our errors say in one line what it says in ten
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: file names may hold any bytes
    options: dict[str, bool] = {}  # what `group` finds out, so that errors of commands can be shown by it
    try:
        sys.exit(group.main(args=arguments, prog_name="edge-ad", standalone_mode=False, obj=options))
    except (click.Abort, click.ClickException, EdgeAdError, ModuleNotFoundError, OSError) as error:
        known = _message_and_code(error)
        if known is None:
            raise
        if options.get("verbose"):
            traceback.print_exc()
        message, code = known
        click.echo(" ".join(message.split()), err=True)
        sys.exit(code)


def _message_and_code(error: Exception) -> tuple[str, int] | None:
    match error:
        case click.Abort():  # Ctrl-C
            return "interrupted", INTERRUPTED
        case click.ClickException():
            return f"error: {_usage(error)}", error.exit_code
        case EdgeAdError():
            return f"error: {error}", error.exit_code
        case ModuleNotFoundError():
            package = (error.name or "").partition(".")[0]
            if package in _BASE_PACKAGES:
                return None
            remedy = f"this command needs the training extra ({package} is missing): {pip_install('train')}"
            return f"error: {remedy}", ExtraMissingError.exit_code
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EACCES | errno.EROFS):
            return f"error: {error.filename or 'output'}: {error.strerror}", EdgeAdError.exit_code
    return None


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return error.format_message() + (f" See '{context.command_path} --help'." if context else "")
