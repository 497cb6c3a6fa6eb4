from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from edge_ad.methods import METHODS, ast, efficient_ad, method_class, padim, spade
from edge_ad.methods.described import described_parameters, summary


class Base:
    """A base.

    Args:
        rate: of learning.
        steps, width: in place of
            the `schedule`'s.
    """

    schedule = "long"

    def __init__(self, *, rate: float = 0.1, steps: int | None = None, width: int = 3) -> None:
        raise NotImplementedError


class Method(Base):
    """A method.

    Args:
        layers: of the teacher, see `Backbone`; of stride 8 where none are named.
        is_wide: ``"yes"``, see `Elsewhere`.
        rate: see `Base`.

    Raises:
        InputError: never.
    """

    def __init__(self, *, layers: tuple[str, ...] = (), is_wide: bool = False, **training: Any) -> None:
        raise NotImplementedError


def test_defaults_and_meanings_are_those_of_constructors_and_docstrings():
    assert described_parameters(Method) == [
        ("layers=<str,...>", "of the teacher, see edge-ad train --help; of stride 8 where none are named"),
        ("is_wide=false", '"yes"'),
        ("rate=0.1", "of learning"),
        ("steps=<int>", "in place of the long's"),
        ("width=3", "as steps"),
    ]


@pytest.mark.parametrize(
    ("file", "stated"),
    [
        (padim, f"the {padim.RANK} leading eigenvectors are kept"),
        (spade, f"K is {spade.NEIGHBOURS}, the code's, where the paper has 50"),
        (ast, f"scales are clamped at {ast.CLAMP} where the code's configuration"),
        (efficient_ad, f"the deviation of a channel of the teacher by {efficient_ad.SMALLEST_STD} from below"),
        (efficient_ad, f"the distance of a map's two quantiles by {efficient_ad.SMALLEST_EXTENT}"),
    ],
)
def test_files_open_with_where_their_numbers_are_not_the_papers(file: ModuleType, stated: str):
    """As docs/methods.md promises."""
    assert stated in " ".join((file.__doc__ or "").split())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_parameter_says_what_it_is(name: str):
    method = method_class(name)
    assert ": " in summary(method)
    described = described_parameters(method)
    assert described
    assert all(meaning and "`" not in meaning for _, meaning in described), described
