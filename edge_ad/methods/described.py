"""What a method and its parameters mean, as the docstrings say it: for those who do not read sources."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Mapping
from typing import Any

from edge_ad.methods.parameters import parameters

if typing.TYPE_CHECKING:
    from edge_ad.methods.tile_model import TileModel

_ENTRY = re.compile(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", re.MULTILINE)
_ELSEWHERE = re.compile(r"[,;]? ?see `(\w+)`")


def summary(method: type[TileModel]) -> str:
    """The first sentence of the method's file."""
    return (inspect.getdoc(sys.modules[method.__module__]) or "").partition("\n\n")[0].replace("\n", " ")


def described_parameters(method: type[TileModel]) -> list[tuple[str, str]]:
    """``KEY=DEFAULT`` of every parameter, ``KEY=<type>`` where it has none, and what it means."""
    meanings: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    for kind in reversed(method.__mro__):
        if "__init__" in vars(kind):
            meanings |= _meanings(kind)
            taken = inspect.signature(vars(kind)["__init__"]).parameters.values()
            defaults |= {each.name: each.default for each in taken}
    return [
        (f"{name}={_default(defaults[name], kind)}", _plain(meanings.get(name, ""), method))
        for name, kind in parameters(method).items()
    ]


def _meanings(kind: type) -> dict[str, str]:
    """Of the names under ``Args:``, but those that a base says more of. Names explained together are so once."""
    arguments = (inspect.getdoc(kind) or "").partition("Args:\n")[2].partition("\n\n")[0]
    bases = {base.__name__ for base in kind.__mro__}
    found: dict[str, str] = {}
    for names, text in _ENTRY.findall(arguments):
        text = " ".join(text.split())
        elsewhere = _ELSEWHERE.match(text)
        if elsewhere and elsewhere[1] in bases:
            continue
        first, *others = names.split(", ")
        found |= {first: text} | dict.fromkeys(others, f"as {first}")
    return found


def _default(value: Any, kind: Any) -> str:
    if value is None or value == ():
        several = typing.get_origin(kind) is tuple
        (inner, *_) = typing.get_args(kind) or (kind,)
        return f"<{inner.__name__}{',...' if several else ''}>"
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(text: str, method: type[TileModel]) -> str:
    """Without references to the source: the method's own attributes by their values, other classes left out."""

    def value(match: re.Match[str]) -> str:
        found = getattr(method, match[1], match[1])
        return ", ".join(found) if isinstance(found, Mapping) else str(found)

    text = text.replace("``", "").replace("`Backbone`", "edge-ad train --help")
    text = _ELSEWHERE.sub("", text).lstrip(";. ")
    return re.sub(r"`(\w+)`", value, text).removesuffix(".")
