"""A method's parameters: the keyword arguments of its constructor, read from ``KEY=VALUE`` as they are annotated."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from edge_ad.errors import InputError

if typing.TYPE_CHECKING:
    from edge_ad.methods.tile_model import TileModel


def parameters(method: type[TileModel]) -> dict[str, Any]:
    """Names and annotated types of all keyword arguments, those a base class takes included."""
    found: dict[str, Any] = {}
    for kind in method.__mro__:
        if "__init__" not in vars(kind):
            continue
        constructor = vars(kind)["__init__"]
        hints = typing.get_type_hints(constructor)
        signature = inspect.signature(constructor).parameters.values()
        found |= {p.name: hints[p.name] for p in signature if p.kind is p.KEYWORD_ONLY and p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in signature):
            break  # hands no keyword arguments on to its bases
    return found


def parse_parameters(method: type[TileModel], pairs: Iterable[str], **common: Any) -> dict[str, Any]:
    """Keyword arguments for ``method`` from ``KEY=VALUE`` each; a tuple is written comma separated.

    Args:
        method: a class of `edge_ad.methods.METHODS`.
        pairs: what the user gave; of a key given twice the later one counts.
        common: of the run rather than the method, such as its seed: passed on where the method has such a parameter.

    Raises:
        InputError: no "=", or a value that is not of the parameter's type; see `check_parameters` for names.
    """
    given = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"-p {pair}: expected KEY=VALUE")
        given[key.strip()] = text.strip()
    kinds = check_parameters(method, given)
    taken = {key: value for key, value in common.items() if key in kinds}
    return taken | {key: _parse(key, kinds[key], text) for key, text in given.items()}


def check_parameters(method: type[TileModel], given: Mapping[str, object]) -> dict[str, Any]:
    """`parameters` of ``method``. Raises `InputError` where it lacks one of ``given``, listing those it has."""
    kinds = parameters(method)
    if unknown := [key for key in given if key not in kinds]:
        raise InputError(f"{method.name} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(kinds))}")
    return kinds


def _parse(key: str, kind: Any, text: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # an optional: absent is None, so what is given is the other
        (kind,) = (argument for argument in arguments if argument is not types.NoneType)
    if origin is tuple:
        return tuple(_parse(key, arguments[0], part.strip()) for part in text.split(",") if part.strip())
    if kind is bool:
        if text not in ("true", "false"):
            raise InputError(f"{key}: expected true or false, but got {text!r}")
        return text == "true"
    try:
        value = kind(text)
    except ValueError as error:
        raise InputError(f"{key}: expected {kind.__name__}, but got {text!r}") from error
    if kind is float and not math.isfinite(value):
        raise InputError(f"{key}: expected a finite number, but got {text!r}")
    return value
