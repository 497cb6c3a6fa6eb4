"""Writes docs/api.md from the docstrings of what camera software calls: ``make docs``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import edge_ad
from edge_ad import errors
from edge_ad.runtime import devices
from edge_ad.runtime.background import Drop
from edge_ad.runtime.faults import ACTIONS, Stats
from edge_ad.runtime.result import Region

TARGET = Path(__file__).with_name("api.md")
HEADER = """\
# Python interface

What camera software calls, after `import edge_ad`; from docstrings by `make docs`, a test fails when it is stale. How
the pieces are used together: [README](../README.md#on-the-box) and [reliability](reliability.md#runtime). Anything that
is not on this page may change without a word in [the changelog](../CHANGELOG.md).
"""
# Of each class what its users call; what else is public serves other rooms.
MEMBERS: dict[Any, tuple[str, ...]] = {
    edge_ad.load: (),
    edge_ad.Detector: (
        *("__call__", "stream", "stats", "close", "image_size", "device", "precision", "inside"),
        *("raw", "tiles", "with_normalisation"),
    ),
    edge_ad.Result: ("verdict", "regions", "regions_at", "map_at", "original_size"),
    Region: (),
    edge_ad.Stream: ("stats", "close"),
    Stats: ("pending",),
    edge_ad.FaultPolicy: (),
    edge_ad.Frame: (),
    edge_ad.frames_from: (),
}


def render() -> str:
    """The page as markdown."""
    parts = [HEADER]
    for thing, members in MEMBERS.items():
        parts.append(_section(f"## {thing.__name__}", thing))
        parts += [_section(f"### {thing.__name__}.{name}", inspect.getattr_static(thing, name)) for name in members]
    parts += [_words(), _section("## Devices", devices), _errors()]
    return "\n".join(parts)


def _section(title: str, thing: Any) -> str:
    return f"{title}\n\n```\n{_signature(thing)}{inspect.getdoc(thing)}\n```\n"


def _signature(thing: Any) -> str:
    """Of a function or a dataclass, an argument per line where it is long; nothing of what has none to show."""
    if not inspect.isfunction(thing) and not (inspect.isclass(thing) and thing is edge_ad.FaultPolicy):
        return ""
    signature = inspect.signature(thing)
    shown = [_argument(each) for each in signature.parameters.values() if each.name != "self"]
    keyword_only = [each.kind is each.KEYWORD_ONLY for each in signature.parameters.values() if each.name != "self"]
    if True in keyword_only:
        shown.insert(keyword_only.index(True), "*")
    returned = "" if inspect.isclass(thing) else f" -> {_plain(signature.return_annotation)}"
    line = f"({', '.join(shown)}){returned}"
    if len(line) > 100:
        line = "(\n    " + ",\n    ".join(shown) + f",\n){returned}"
    return f"{thing.__name__}{line}\n\n"


def _argument(parameter: inspect.Parameter) -> str:
    text = f"{parameter.name}: {_plain(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    default = parameter.default
    return f"{text} = {'FaultPolicy()' if isinstance(default, edge_ad.FaultPolicy) else _plain(repr(_value(default)))}"


def _value(default: Any) -> Any:
    return str(default) if isinstance(default, str) else default  # of an enumeration its word


def _plain(annotation: Any) -> str:
    return str(annotation).replace("NDArray[Any]", "ndarray").replace("np.", "").replace("NDArray", "ndarray")


def _words() -> str:
    """Words that arguments take, and which fault takes which action."""
    lines = ["## Words that arguments take", "", "| argument | |", "| --- | --- |"]
    lines.append(f"| `drop` | {', '.join(f'`{word}`' for word in Drop)} |")
    for fault, actions in ACTIONS.items():
        lines.append(f"| `FaultPolicy({fault}=)` | {', '.join(f'`{word}`' for word in actions)} |")
    return "\n".join([*lines, "", "What each does: [reliability](reliability.md#runtime).", ""])


def _errors() -> str:
    """Every error with the exit code of its family, a kind below the one it is a kind of."""
    lines = ["## Errors", "", "In `edge_ad.errors`; a kind stands below what it is a kind of.", ""]
    lines += ["| error | exit code | |", "| --- | ---: | --- |"]

    def describe(error: type[errors.EdgeAdError], depth: int) -> None:
        summary = (inspect.getdoc(error) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| {'&emsp;' * depth}`{error.__name__}` | {error.exit_code} | {summary} |")
        kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and error in kind.__bases__]
        for kind in kinds:
            describe(kind, depth + 1)

    describe(errors.EdgeAdError, 0)
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
