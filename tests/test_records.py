from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from edge_ad.errors import InputError
from edge_ad.records import from_plain, to_plain


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    ratio: float


@dataclass(frozen=True)
class Outer:
    name: str
    colour: Colour
    inner: Inner | None
    many: tuple[Inner, ...]
    free: dict[str, Any]
    flag: bool


VALUE = Outer("n", Colour.RED, Inner((3, 5), 0.5), (Inner((1, 2), 2.0),), {"a": [1]}, True)


def test_there_and_back():
    plain = to_plain(VALUE)
    assert plain["inner"] == {"size": [3, 5], "ratio": 0.5}
    assert type(plain["colour"]) is str
    assert from_plain(Outer, plain, "x") == VALUE


def test_a_field_with_a_default_may_be_missing():
    """Files of earlier releases do not have it."""

    @dataclass(frozen=True)
    class Later:
        name: str
        added: int = 3

    assert from_plain(Later, {"name": "n"}, "x") == Later("n", 3)
    assert from_plain(Later, {"name": "n", "added": 4}, "x") == Later("n", 4)
    with pytest.raises(InputError, match="x: missing name"):
        from_plain(Later, {"added": 4}, "x")


def change(key, value):
    return to_plain(VALUE) | {key: value}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (change("name", 3), r"x\.name: expected str, but got 3"),
        (change("colour", "green"), r"x\.colour: expected one of red, blue, but got 'green'"),
        (change("inner", {"size": [1, 2]}), r"x\.inner: missing ratio"),
        (change("inner", {"size": [1, 2], "ratio": 1, "z": 0}), r"x\.inner: unknown z"),
        (change("inner", {"size": [1], "ratio": 1}), r"x\.inner\.size: expected 2 items, but got 1"),
        (change("inner", {"size": [1, "2"], "ratio": 1}), r"x\.inner\.size\[1\]: expected int, but got '2'"),
        (change("many", [{"size": [1, 2], "ratio": float("nan")}]), r"x\.many\[0\]\.ratio: expected a finite number"),
        (change("free", []), r"x\.free: expected an object"),
        (change("flag", 1), r"x\.flag: expected bool, but got 1"),
        ([], "x: expected an object"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(value, message):
    with pytest.raises(InputError, match=message):
        from_plain(Outer, value, "x")
