from typing import Any

import pytest

from edge_ad.errors import InputError
from edge_ad.methods import METHODS, create_model, method_class
from edge_ad.methods.parameters import parameters, parse_parameters


class Base:
    name = "base"

    def __init__(self, size: int, config: dict[str, Any], *, rate: float = 0.1, steps: int | None = None) -> None:
        raise NotImplementedError


class Method(Base):
    name = "method"

    def __init__(
        self, size: int, *, layers: tuple[str, ...] = (), is_wide: bool = False, mode: str = "a", **training: Any
    ) -> None:
        raise NotImplementedError


class Sealed(Base):
    name = "sealed"

    def __init__(self, size: int, *, width: int = 3) -> None:
        raise NotImplementedError


def test_keyword_arguments_of_bases_count_where_they_are_handed_on():
    assert list(parameters(Method)) == ["layers", "is_wide", "mode", "rate", "steps"]
    assert list(parameters(Sealed)) == ["width"]


def test_values_take_the_annotated_type():
    pairs = ["layers=layer1, layer2", "is_wide=true", "mode=b=c", "rate=1e-3", "steps=7"]
    expected = {"layers": ("layer1", "layer2"), "is_wide": True, "mode": "b=c", "rate": 1e-3, "steps": 7}
    assert parse_parameters(Method, pairs) == expected
    assert parse_parameters(Method, ["layers=", "steps=1", "steps=2"]) == {"layers": (), "steps": 2}


def test_what_the_run_gives_is_passed_on_where_the_method_takes_it():
    assert parse_parameters(Sealed, ["width=5"], width=4, seed=3) == {"width": 5}
    assert parse_parameters(method_class("padim"), [], seed=3, weights="none") == {"seed": 3, "weights": "none"}
    assert parse_parameters(method_class("patchcore"), [], seed=3, weights="none") == {"weights": "none"}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("width", "-p width: expected KEY=VALUE"),
        ("widht=3", "sealed has no parameter widht; it has width"),
        ("width=3.5", "width: expected int, but got '3.5'"),
    ],
)
def test_errors(pair, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        parse_parameters(Sealed, [pair])


@pytest.mark.parametrize("pair", ["rate=nan", "rate=inf", "rate=x", "is_wide=yes"])
def test_values_out_of_type(pair):
    with pytest.raises(InputError, match=pair.partition("=")[0]):
        parse_parameters(Method, [pair])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_network_and_refuses_what_it_does_not_know(method):
    found = parameters(method_class(method))
    own_teacher = method == "efficient_ad"  # a network of its own in place of a backbone
    assert {"weights"} | (set() if own_teacher else {"backbone", "layers"}) <= set(found)
    with pytest.raises(InputError, match=f"{method} has no parameter colour; it has"):
        create_model(method, (32, 32), colour=3)
