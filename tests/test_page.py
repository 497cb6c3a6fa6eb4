from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from edge_ad.page import Part, bar_chart, code, facts, figure, gallery, heading, page, paragraph, table

PNG, JPEG = b"\x89PNG\r\n\x1a\n" + b"pixels", b"\xff\xd8\xff\xe0" + b"pixels"
NASTY = "<script>alert(\"x\")</script> & 'quotes'"


class Reader(HTMLParser):
    """Elements in order, and a complaint where tags do not nest."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]


def sample(text: str = "text") -> str:
    return page(
        text,
        heading(text),
        paragraph(text),
        facts({text: text, "latency": 1.5}),
        table((text, "ms"), [(text, "1.5"), ("b", 2)], caption=text),
        figure(PNG, text),
        gallery([figure(PNG, text), figure(JPEG, text)]),
        bar_chart([text, "b"], [1, 2.5], text),
        code(text),
    )


def test_tags_nest_and_the_title_is_the_heading():
    read = Reader(sample())
    assert read.text("title")[0] == read.text("h1")[0] == "text"
    assert len(read.all("img")) == 3
    assert {"lang": "en"} in read.all("html")


def test_all_text_is_escaped_everywhere():
    html = sample(NASTY)
    read = Reader(html)
    assert "<script" not in html
    for tag in ("title", "h1", "h2", "p", "dt", "dd", "th", "td", "caption", "figcaption", "code", "text"):
        assert NASTY in read.text(tag), tag
    assert all(image["alt"] == NASTY for image in read.all("img"))
    assert read.all("svg")[0]["aria-label"] == NASTY


def test_nothing_is_fetched_and_nothing_runs():
    html = sample()
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(|\son\w+=", re.sub(r"base64,[^\"]*", "", html))
    assert all(source["src"].startswith("data:image/") for source in Reader(html).all("img"))


def test_light_and_dark():
    assert "color-scheme: light dark" in page("title")
    assert "prefers-color-scheme: dark" in page("title")


def test_a_picture_is_embedded_as_what_it_is():
    for content, kind in ((PNG, "image/png"), (JPEG, "image/jpeg")):
        (image,) = Reader(figure(content, "a part")).all("img")
        assert image["src"] == f"data:{kind};base64,{base64.b64encode(content).decode()}"
    with pytest.raises(ValueError, match=r"PNG or JPEG file, but they begin with b'GIF89a'"):
        figure(b"GIF89a", "a part")


def test_columns_of_numbers_stand_to_the_right():
    #                 name    figure   percent   with gaps   SHA-256    version
    rows = [("a", "1.50", "12 %", "-", "12ab", "1.2.3"), ("2", "-3e-05", "1,000 ms", "4", "34", "2.0")]
    read = Reader(table(("a", "b", "c", "d", "e", "f"), rows))
    right = [attributes.get("class") == "number" for attributes in read.all("td")]
    assert right == [False, True, True, True, False, False] * 2
    assert [attributes.get("class") == "number" for attributes in read.all("th")] == right[:6]


def test_cells_keep_their_text():
    read = Reader(table(("a", "b"), [(1, 2.50), (None, "0.10")]))
    assert read.text("td") == ["1", "2.5", "None", "0.10"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected rows of 2 cells"):
        table(("a", "b"), [(1, 2), (3,)])


def test_bars_are_as_high_as_their_values():
    read = Reader(bar_chart(["a", "b", "c"], [1, 4, 0], "runs"))
    bars = read.all("rect")
    assert [float(bar["height"]) for bar in bars] == [50, 200, 0]
    assert [float(bar["y"]) for bar in bars] == [150, 0, 200]  # y points down
    assert all(float(bar["x"]) >= 0 and float(bar["x"]) + float(bar["width"]) <= 720 for bar in bars)
    assert read.text("title") == ["a: 1", "b: 4", "c: 0"]
    assert read.text("text") == ["a", "1", "b", "4", "c", "0"]


def test_of_many_bars_some_are_labelled():
    read = Reader(bar_chart([f"b{index}" for index in range(40)], range(40)))
    assert len(read.all("rect")) == 40
    assert read.text("text") == ["b0", "b5", "b10", "b15", "b20", "b25", "b30", "b35", "39"]


def test_bars_of_nothing_but_zeros():
    assert [bar["height"] for bar in Reader(bar_chart(["a"], [0])).all("rect")] == ["0.00"]


@pytest.mark.parametrize(("labels", "values"), [([], []), (["a"], [1, 2]), (["a"], [-1])])
def test_bars_without_sense_are_refused(labels: list[str], values: list[float]):
    with pytest.raises(ValueError, match="expected a label for each"):
        bar_chart(labels, values)


def test_parts_stand_in_the_order_given():
    html = page("title", paragraph("one"), Part("<hr>"), paragraph("two"))
    assert html.index("<p>one</p>") < html.index("<hr>") < html.index("<p>two</p>")
