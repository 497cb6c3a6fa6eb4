"""Frozen dataclasses to plain JSON values and back, exactly. The files of this project are written by one release and
read by another, so a field that is missing, unknown or of the wrong type is refused: a guess would be a wrong verdict.
One that has a default may be missing: files of earlier releases do not have it, and its default says what they meant.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from enum import StrEnum
from typing import Any

from edge_ad.errors import InputError


def to_plain(value: Any) -> Any:
    """``value`` with dataclasses as dicts, tuples as lists and enums as strings: what `json.dumps` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, StrEnum):
        return str(value)
    return value


def from_plain(kind: Any, value: Any, where: str, error: type[InputError] = InputError) -> Any:
    """The inverse of `to_plain`: ``value`` as the annotated type ``kind``.

    Args:
        kind: a dataclass, enum, tuple, optional, dict, or str, int, float, bool; `Any` passes everything.
        value: what `json.loads` gave.
        where: path of the value, for messages ("manifest.json").
        error: class of the error raised.

    Raises:
        InputError (as ``error``): missing or unknown field, wrong type, number that is not finite; with its path.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where, error)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else from_plain(inner, value, where, error)
    if origin is tuple:
        return _tuple(arguments, value, where, error)
    if origin is dict:
        if not isinstance(value, dict):
            raise error(f"{where}: expected an object, but got {value!r}")
        return {str(key): from_plain(arguments[1], item, f"{where}.{key}", error) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if value not in [str(member) for member in kind]:
            raise error(f"{where}: expected one of {', '.join(kind)}, but got {value!r}")
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if type(value) is not kind:
        raise error(f"{where}: expected {kind.__name__}, but got {value!r}")
    if kind is float and not math.isfinite(value):
        raise error(f"{where}: expected a finite number, but got {value!r}")
    return value


def _dataclass(kind: Any, value: Any, where: str, error: type[InputError]) -> Any:
    if not isinstance(value, dict):
        raise error(f"{where}: expected an object, but got {value!r}")
    annotations = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    names = [field.name for field in fields]
    required = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in value]:
        raise error(f"{where}: missing {', '.join(missing)}")
    if unknown := [name for name in value if name not in names]:
        raise error(f"{where}: unknown {', '.join(unknown)}")
    given = {
        name: from_plain(annotations[name], value[name], f"{where}.{name}", error) for name in names if name in value
    }
    return kind(**given)


def _tuple(arguments: tuple[Any, ...], value: Any, where: str, error: type[InputError]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise error(f"{where}: expected a list, but got {value!r}")
    kinds = (arguments[0],) * len(value) if len(arguments) == 2 and arguments[1] is Ellipsis else arguments
    if len(value) != len(kinds):
        raise error(f"{where}: expected {len(kinds)} items, but got {len(value)}")
    return tuple(
        from_plain(kind, item, f"{where}[{index}]", error)
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )
