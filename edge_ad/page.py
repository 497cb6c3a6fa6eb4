"""One self-contained HTML page from text, tables, figures and bars: no script, no network, light and dark.

    page("Report", paragraph("Two runs."), table(("run", "ms"), [("a", 1.5), ("b", 2.0)]))

Every constructor escapes what it is given and returns a `Part`; `page` takes only parts.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NewType

Part = NewType("Part", str)
"""HTML whose text has been escaped."""

_NUMBER = re.compile(r"[-+−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?(%|ms|s|x|MB|MiB))?", re.IGNORECASE)
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_CHART_WIDTH, _CHART_HEIGHT = 720, 200  # of the bars, in units of the drawing: it grows and shrinks with the page
_MOST_BAR_LABELS = 8

_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f5f6f8; --ink: #1b1f24; --quiet: #5b6570; --rule: #d9dde2; --accent: #0067a3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --raised: #1d2126; --ink: #e6e9ec; --quiet: #9aa5b0; --rule: #343b42; --accent: #58b1e6;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 62rem; padding: 3rem 1.5rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums;
}
h1 { margin: 0 0 1.5rem; font-size: 1.9rem; font-weight: 650; line-height: 1.2; letter-spacing: -0.015em; }
h2 { margin: 2.75rem 0 0.75rem; font-size: 1.2rem; font-weight: 650; line-height: 1.3; }
p { margin: 0.75rem 0; max-width: 46rem; }
figure { margin: 1.25rem 0; }
figcaption, caption { color: var(--quiet); font-size: 0.875rem; text-align: left; }
figcaption { margin-top: 0.4rem; overflow-wrap: anywhere; }
caption { caption-side: bottom; padding-top: 0.5rem; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--quiet); font-size: 11px; }
svg .bar { fill: var(--accent); }
svg .axis { stroke: var(--rule); }
pre {
  margin: 1rem 0; padding: 0.9rem 1.1rem; overflow-x: auto; background: var(--raised); border-radius: 6px;
  font: 0.875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
.wide { margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.925rem; }
th, td { padding: 0.4rem 1.1rem 0.4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { color: var(--quiet); font-weight: 550; border-bottom-width: 2px; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
td { overflow-wrap: anywhere; }
.gallery {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.25rem; margin: 1.25rem 0;
}
.gallery figure { margin: 0; }
.gallery img { width: 100%; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 0.75rem; margin: 1.25rem 0; }
.facts div { padding: 0.8rem 1rem; background: var(--raised); border-radius: 6px; }
.facts dt { color: var(--quiet); font-size: 0.875rem; }
.facts dd { margin: 0.15rem 0 0; font-size: 1.3rem; font-weight: 600; line-height: 1.25; overflow-wrap: anywhere; }
@media print {
  body { padding: 0; max-width: none; }
  figure, tr, .facts div { break-inside: avoid; }
}
"""


def page(title: str, *parts: Part) -> str:
    """The whole page, ``title`` as its heading."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{_text(title)}</h1>\n{_joined(parts)}\n</main>\n</body>\n</html>\n"
    )


def paragraph(text: str) -> Part:
    """A paragraph."""
    return Part(f"<p>{_text(text)}</p>")


def heading(text: str) -> Part:
    """The heading of a section."""
    return Part(f"<h2>{_text(text)}</h2>")


def code(text: str) -> Part:
    """Text as it is, in a fixed-width font."""
    return Part(f"<pre><code>{_text(text)}</code></pre>")


def facts(values: Mapping[str, object]) -> Part:
    """Labels and values as tiles side by side."""
    tiles = (f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>" for label, value in values.items())
    return Part(f'<dl class="facts">{"".join(tiles)}</dl>')


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], caption: str | None = None) -> Part:
    """A table; columns that hold only numbers, and perhaps gaps ("" or "-"), stand to the right.

    Raises:
        ValueError: a row is not as long as ``headers``.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"expected rows of {len(headers)} cells, but got {row}")
    numeric = [_is_numeric([row[column] for row in cells]) for column in range(len(headers))]
    head = _row("th", headers, numeric)
    body = "\n".join(_row("td", row, numeric) for row in cells)
    below = "" if caption is None else f"<caption>{_text(caption)}</caption>"
    return Part(f'<div class="wide"><table>{below}\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>')


def figure(image: bytes, caption: str = "") -> Part:
    """A picture, embedded; ``image`` is the content of a PNG or JPEG file.

    Raises:
        ValueError: neither PNG nor JPEG.
    """
    kind = next((kind for signature, kind in _SIGNATURES.items() if image.startswith(signature)), None)
    if kind is None:
        raise ValueError(f"expected the bytes of a PNG or JPEG file, but they begin with {image[:8]!r}")
    source = f"data:{kind};base64,{base64.b64encode(image).decode('ascii')}"
    return _figure(f'<img src="{source}" alt="{_attribute(caption)}">', caption)


def gallery(figures: Iterable[Part]) -> Part:
    """Figures in as many columns as the window has room for."""
    return Part(f'<div class="gallery">{_joined(figures)}</div>')


def bar_chart(labels: Sequence[str], values: Sequence[float], caption: str = "") -> Part:
    """A bar per value, zero at the bottom: a histogram, or few figures side by side. Hovering tells label and value.

    Args:
        labels: what stands below the bars; of many, every n-th is shown.
        values: 0 or more.

    Raises:
        ValueError: no value, as many labels as values were expected, or a value below 0.
    """
    if not values or len(labels) != len(values) or min(values) < 0:
        raise ValueError(f"expected a label for each of at least one value from 0 on, but got {labels} and {values}")
    top = max(values) or 1
    step = _CHART_WIDTH / len(values)
    gap = min(step * 0.15, 12)
    every = -(-len(values) // _MOST_BAR_LABELS)
    few = len(values) <= _MOST_BAR_LABELS
    drawn = []
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        height = _CHART_HEIGHT * value / top
        left, middle = index * step, (index + 0.5) * step
        drawn.append(
            f'<rect class="bar" x="{left + gap / 2:.2f}" y="{_CHART_HEIGHT - height:.2f}" '
            f'width="{step - gap:.2f}" height="{height:.2f}"><title>{_text(label)}: {value:g}</title></rect>'
        )
        if index % every == 0:
            drawn.append(_label(middle, _CHART_HEIGHT + 16, label))
        if few:
            drawn.append(_label(middle, _CHART_HEIGHT - height - 5, f"{value:g}"))
    if not few:
        drawn.append(f'<text x="0" y="-6">{top:g}</text>{_rule(0)}')
    drawn.append(_rule(_CHART_HEIGHT))
    view = f"0 -20 {_CHART_WIDTH} {_CHART_HEIGHT + 44}"
    chart = "\n".join(drawn)
    return _figure(f'<svg viewBox="{view}" role="img" aria-label="{_attribute(caption)}">\n{chart}\n</svg>', caption)


def _figure(content: str, caption: str) -> Part:
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return Part(f"<figure>{content}{below}</figure>")


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="middle">{_text(text)}</text>'


def _rule(y: float) -> str:
    return f'<line class="axis" x1="0" y1="{y}" x2="{_CHART_WIDTH}" y2="{y}"/>'


def _row(tag: str, cells: Sequence[str], numeric: Sequence[bool]) -> str:
    kinds = (' class="number"' if right else "" for right in numeric)
    return f"<tr>{''.join(f'<{tag}{kind}>{_text(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>"


def _is_numeric(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell not in ("", "-", "–")]
    return bool(filled) and all(_NUMBER.fullmatch(cell) for cell in filled)


def _joined(parts: Iterable[Part]) -> str:
    return "\n".join(parts)


def _text(value: object) -> str:
    """Escaped for the inside of an element; quotes may stay as they are there."""
    return html.escape(str(value), quote=False)


def _attribute(value: str) -> str:
    return html.escape(value, quote=True)
