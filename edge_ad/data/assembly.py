"""An assembly on a plate, and its photograph: what the synthetic sets with logical defects show.

A dark plate with eight drilled holes, a place for a sticker at either end, and two wires that run below a cover from a
block on the left to one on the right. Whether what is on it belongs together is for the rules of a set to say
(`edge_ad.data.assembly_task`); a scratch or a dent is wrong on any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.data.drawing import Canvas, Rng, blend, blob, finish, inside, scratch
from edge_ad.tiling import Size

ROWS, COLUMNS = 2, 4  # of holes


class Part(StrEnum):
    """What is in a hole."""

    NONE = "none"
    BOLT = "bolt"
    WASHER = "washer"


class Wire(StrEnum):
    """Colours of insulation."""

    RED = "red"
    YELLOW = "yellow"
    BLUE = "blue"


class Label(StrEnum):
    """Stickers that name a type: a colour of paper, a number and a bar code for each."""

    WHITE = "white"
    YELLOW = "yellow"
    GREEN = "green"
    BLUE = "blue"


@dataclass(frozen=True)
class Assembly:
    """What is where on a plate.

    Attributes:
        holes: `ROWS` x `COLUMNS`, row by row.
        stickers: whether there is one on the left, and on the right.
        wires: colours from top to bottom, on the left and on the right.
        label: of the type that stickers name; without it they are white, each with a number of its own.
    """

    holes: tuple[Part, ...]
    stickers: tuple[bool, bool]
    wires: tuple[tuple[Wire, Wire], tuple[Wire, Wire]]
    label: Label | None = None


# --- where things are: places in fractions of the image's height and width, lengths of its shorter side ---------------

_HOLE_Y, _HOLE_X = (0.42, 0.60), (0.14, 0.38, 0.62, 0.86)
_PART_RADIUS = {Part.BOLT: 0.058, Part.WASHER: 0.052}
_STICKER_AT, _STICKER_SIZE = ((0.19, 0.135), (0.19, 0.865)), (0.115, 0.165)  # no window of the middle half sees them
_WIRE_Y, _WIRE_RADIUS = (0.795, 0.865), 0.0125
_BLOCK_X, _BLOCK_SIZE = (0.245, 0.755), (0.15, 0.075)

_Colour = tuple[float, float, float]
_PLATE = (74.0, 86.0, 97.0)
_STEEL, _BRASS = (176.0, 180.0, 186.0), (192.0, 156.0, 84.0)
_WHITE = (1.0, 0.99, 0.95)  # what paper reflects
_PAPER = {
    Label.WHITE: _WHITE,
    Label.YELLOW: (0.98, 0.84, 0.36),
    Label.GREEN: (0.50, 0.80, 0.50),
    Label.BLUE: (0.48, 0.70, 0.94),
}
_COLOURS = {Wire.RED: (186.0, 44.0, 40.0), Wire.YELLOW: (208.0, 172.0, 46.0), Wire.BLUE: (44.0, 84.0, 176.0)}


@dataclass(frozen=True, eq=False)
class _View:
    """A part of an image to draw on, and the offsets ``dy``, ``dx`` (h, w) of its pixels from a centre."""

    image: Canvas
    dy: NDArray[np.float32]
    dx: NDArray[np.float32]
    window: tuple[slice, slice]
    size: Size

    def region(self, covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``covered`` (h, w) in a mask of the whole image."""
        whole = np.zeros(self.size, bool)
        whole[self.window] = covered
        return whole


@dataclass
class Plate:
    """A plate being drawn, and the regions, bool (H, W), of what is on it.

    Attributes:
        image: float32 (H, W, 3) RGB, 0..255.
        holes, stickers: by their numbers in `Assembly`; where a part or sticker is, or would be.
        wires: both wires, on the left and on the right.
    """

    image: Canvas
    holes: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    stickers: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    wires: list[NDArray[np.bool_]] = field(default_factory=list)

    @property
    def size(self) -> Size:
        """(H, W)."""
        height, width = self.image.shape[:2]
        return height, width

    @property
    def side(self) -> int:
        """The shorter one, in pixels."""
        return min(self.size)

    def around(self, centre: tuple[float, float], reach: tuple[float, float]) -> _View:
        """The part of the image up to ``reach`` (y, x) pixels from ``centre``."""
        rows, columns = (
            slice(max(0, int(at - far)), min(limit, int(at + far) + 2))
            for at, far, limit in zip(centre, reach, self.size, strict=True)
        )
        y, x = np.mgrid[rows, columns].astype(np.float32)
        return _View(self.image[rows, columns], y - centre[0], x - centre[1], (rows, columns), self.size)


def draw(assembly: Assembly, rng: Rng, size: Size) -> Plate:
    """A plate with ``assembly``: every part a little off its place."""
    drawn = Plate(_bare_plate(rng, size))
    for index, part in enumerate(assembly.holes):
        _draw_hole(drawn, rng, index, part)
    for index, there in enumerate(assembly.stickers):
        _draw_sticker(drawn, rng, index, there, assembly.label)
    _draw_wires(drawn, rng, assembly.wires)
    return drawn


def _bare_plate(rng: Rng, size: Size) -> Canvas:
    """Anodised metal with a milled edge."""
    height, width = size
    side = min(size)
    grain = rng.normal(0, 1, (height, width)).astype(np.float32)
    fine = cv2.GaussianBlur(grain, (0, 0), sigmaX=max(1.5, side / 40), sigmaY=0.7)
    image = np.ones((height, width, 3), np.float32) * np.array(_PLATE, np.float32)
    image += (3.5 * fine / fine.std())[..., None]
    edge = np.zeros((height, width), np.uint8)
    margin = round(0.025 * side)
    cv2.rectangle(edge, (margin, margin), (width - 1 - margin, height - 1 - margin), 255, max(1, round(side / 200)))
    groove = cv2.GaussianBlur(edge.astype(np.float32) / 255, (0, 0), max(0.6, side / 600))
    shift = max(1, round(side / 300))
    image -= 30 * groove[..., None]
    image += 22 * np.clip(np.roll(groove, (shift, shift), (0, 1)) - groove, 0, 1)[..., None]
    return image


def _draw_hole(drawn: Plate, rng: Rng, index: int, part: Part) -> None:
    height, width = drawn.size
    row, column = divmod(index, COLUMNS)
    jitter, turned = rng.normal(0, 0.003 * drawn.side, 2), rng.uniform(0, np.pi / 3)
    radius = _PART_RADIUS.get(part, _PART_RADIUS[Part.BOLT]) * drawn.side
    centre = _HOLE_Y[row] * height + jitter[0], _HOLE_X[column] * width + jitter[1]
    view = drawn.around(centre, (1.6 * radius, 1.6 * radius))
    image, dy, dx = view.image, view.dy, view.dx
    distance = np.hypot(dy, dx)
    light = -(dy + dx) / np.maximum(distance, 1e-3)
    drawn.holes[index] = view.region(distance <= radius)
    if part is Part.NONE:
        bore = 0.45 * radius
        image += (_ring(distance, bore, 0.14 * radius) * (10 - 22 * light))[..., None]
        _paint(image, inside(distance, bore, 0.6), (20.0, 22.0, 26.0))
        return
    _shade(image, np.hypot(dy - 0.12 * radius, dx - 0.12 * radius) - radius, 0.012 * drawn.side)
    slope = 1 - 0.16 * (dy + dx) / radius
    if part is Part.WASHER:
        _paint(image, inside(distance, radius, 0.6), _BRASS, slope)
        for at in (0.93, 0.55):
            image += (_ring(distance, at * radius, 0.05 * radius + 0.4) * 26 * light)[..., None]
        _paint(image, inside(distance, 0.48 * radius, 0.6), (24.0, 24.0, 26.0))
        return
    _paint(image, inside(distance, radius, 0.6), _STEEL, 0.8 * slope)  # the flange below the head
    head = inside(_hexagon(dy, dx, turned) / 0.76, radius, 0.6)
    _paint(image, head, _STEEL, 1.1 * slope)
    image += (_ring(distance, 0.66 * radius, 0.06 * radius + 0.4) * head * 24 * light)[..., None]
    _paint(image, inside(_hexagon(dy, dx, turned + 0.4), 0.3 * radius, 0.6), (36.0, 37.0, 40.0))


def _draw_sticker(drawn: Plate, rng: Rng, index: int, there: bool, label: Label | None) -> None:
    """A bar code and a number."""
    height, width = drawn.size
    (cy, cx), (tall, wide) = _STICKER_AT[index], _STICKER_SIZE
    cy, cx = cy * height + rng.normal(0, 0.003) * drawn.side, cx * width + rng.normal(0, 0.003) * drawn.side
    angle = float(rng.normal(0, 1.2))
    shape = (max(8, round(tall * drawn.side)), max(8, round(wide * drawn.side)))
    paper = np.full(shape, 232, np.uint8)
    content = np.random.default_rng(list(Label).index(label)) if label else rng
    edges = np.sort(content.uniform(0.08, 0.92, 36)) * shape[1]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        paper[round(0.1 * shape[0]) : round(0.62 * shape[0]), round(start) : max(round(start) + 1, round(end))] = 34
    text = f"{content.integers(10**6, 10**7)}"
    scale = shape[1] / 150
    at = (round(0.08 * shape[1]), round(0.9 * shape[0]))
    cv2.putText(paper, text, at, cv2.FONT_HERSHEY_DUPLEX, scale, 40, max(1, round(scale)), cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((shape[1] / 2, shape[0] / 2), angle, 1.0)
    turn[:, 2] += np.array((cx - shape[1] / 2, cy - shape[0] / 2))
    covered = cv2.warpAffine(np.ones(shape, np.float32), turn, (width, height), flags=cv2.INTER_LINEAR)
    drawn.stickers[index] = covered >= 0.5
    if there:
        drawn.image *= (1 - 0.25 * cv2.GaussianBlur(covered, (0, 0), max(0.8, drawn.side / 200)))[..., None]
        printed = cv2.warpAffine(
            paper.astype(np.float32), turn, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
        )
        drawn.image *= (1 - covered)[..., None]
        drawn.image += (covered * printed)[..., None] * np.array(_PAPER[label] if label else _WHITE, np.float32)


def _draw_wires(drawn: Plate, rng: Rng, wires: tuple[tuple[Wire, Wire], tuple[Wire, Wire]]) -> None:
    """Two blocks, two wires out of each to the edge of the image, and the cover between the blocks."""
    height, width = drawn.size
    radius, middle = _WIRE_RADIUS * drawn.side, float(np.mean(_WIRE_Y)) * height
    for end, colours in enumerate(wires):
        outer = 0.0 if end == 0 else 1.0
        length = abs(outer - _BLOCK_X[end])
        region = np.zeros(drawn.size, bool)
        for at, colour in zip(_WIRE_Y, colours, strict=True):
            bend, phase = rng.normal(0, 0.006) * height, rng.uniform(0, 2 * np.pi)
            centre = at * height, (outer + _BLOCK_X[end]) / 2 * width
            view = drawn.around(centre, (0.04 * height + 2 * radius, length / 2 * width))
            image, dy, dx = view.image, view.dy, view.dx
            outwards = length / 2 + (-dx if end == 0 else dx) / width  # from the block on, in widths
            across = dy - bend * np.sin(18 * outwards + phase) * np.minimum(outwards * 12, 1)
            _shade(image, np.abs(across - 0.6 * radius) - 1.3 * radius, 0.4 * radius)
            gloss = 1.1 - 0.5 * np.clip(across / radius, -1, 1)
            _paint(image, inside(np.abs(across), radius, 0.5), _COLOURS[colour], gloss)
            region |= view.region((np.abs(across) <= radius) & (outwards > _BLOCK_SIZE[1] / 2))
        drawn.wires.append(region)
    _draw_box(drawn, (middle, 0.5 * width), (0.115 * height, (_BLOCK_X[1] - _BLOCK_X[0]) * width), (46.0, 49.0, 54.0))
    for at in _BLOCK_X:
        _draw_box(drawn, (middle, at * width), (_BLOCK_SIZE[0] * height, _BLOCK_SIZE[1] * width), (196.0, 198.0, 192.0))
        for wire_y in _WIRE_Y:
            reach = 0.025 * drawn.side
            view = drawn.around((wire_y * height, at * width), (reach, reach))
            image, dy, dx = view.image, view.dy, view.dx
            distance = np.hypot(dy, dx)
            _paint(image, inside(distance, 0.017 * drawn.side, 0.6), _STEEL, 0.75)
            slot = (np.abs(dy) < max(0.7, 0.003 * drawn.side)) & (distance < 0.014 * drawn.side)
            _paint(image, slot.astype(np.float32), (60.0, 60.0, 62.0))


def _draw_box(drawn: Plate, centre: tuple[float, float], size: tuple[float, float], colour: _Colour) -> None:
    """Something flat with bevelled edges, (height, width) in pixels."""
    reach = 0.05 * drawn.side
    view = drawn.around(centre, (size[0] / 2 + reach, size[1] / 2 + reach))
    image, dy, dx = view.image, view.dy, view.dx
    across, along = np.abs(dy) - size[0] / 2, np.abs(dx) - size[1] / 2
    distance = np.maximum(across, along)
    _shade(image, distance - 0.008 * drawn.side, 0.012 * drawn.side)
    light = -np.where(across > along, np.sign(dy), np.sign(dx))
    _paint(image, inside(distance, 0.0, 0.5), colour, 1 + 0.18 * light * _ring(distance, 0.0, 0.006 * drawn.side + 0.5))


def _hexagon(dy: NDArray[np.float32], dx: NDArray[np.float32], turned: float) -> NDArray[np.float32]:
    """Distance to the centre as a hexagon measures it: constant along its sides."""
    angles = turned + np.arange(3) * np.pi / 3
    distance: NDArray[np.float32] = np.max([np.abs(dy * np.sin(a) + dx * np.cos(a)) for a in angles], axis=0)
    return distance


def _ring(distance: NDArray[np.floating], radius: float, thickness: float) -> NDArray[np.floating]:
    """1 where ``distance`` is ``radius``, falling softly to 0."""
    ring: NDArray[np.floating] = np.exp(-(((distance - radius) / thickness) ** 2))
    return ring


def _paint(image: Canvas, strength: NDArray[Any], colour: _Colour, shade: NDArray[Any] | float = 1.0) -> None:
    """Cover ``image`` by ``strength`` (H, W) in 0..1 with a colour, made lighter or darker by ``shade``."""
    lit = np.clip(np.multiply.outer(np.broadcast_to(shade, strength.shape), np.array(colour)), 0, 250)
    image += (strength[..., None] * (lit - image)).astype(np.float32)


def _shade(image: Canvas, distance: NDArray[np.floating], softness: float) -> None:
    """The shadow of something whose outline is where ``distance`` is 0."""
    image *= (1 - 0.4 * inside(distance, 0.0, softness)).astype(np.float32)[..., None]


def free_place(rng: Rng, size: Size) -> tuple[float, float]:
    """A point (y, x) of the bare plate, away from holes, stickers, blocks, cover and wires."""
    height, width = size
    while True:
        y, x = rng.uniform(0.08, 0.72), rng.uniform(0.08, 0.92)
        holes = product(_HOLE_Y, _HOLE_X)
        near = any(np.hypot((y - cy) * height, (x - cx) * width) < 0.09 * min(size) for cy, cx in holes)
        sticker = any(abs(y - cy) < 0.1 and abs(x - cx) < 0.13 for cy, cx in _STICKER_AT)
        if not near and not sticker:
            return y * height, x * width


def _dent(image: Canvas, rng: Rng, at: tuple[float, float]) -> tuple[Canvas, NDArray[np.bool_]]:
    """A shallow hollow: its side towards the light dark, the other bright."""
    height, width = image.shape[:2]
    hollow = blob(rng, (height, width), at, rng.uniform(0.022, 0.034) * min(height, width))
    soft: NDArray[Any] = cv2.GaussianBlur(hollow, (0, 0), 0.008 * min(height, width) + 0.6)
    slope = np.gradient(soft, axis=0) + np.gradient(soft, axis=1)
    image += (slope / max(float(np.abs(slope).max()), 1e-6) * 46)[..., None]
    return blend(image, soft, -14.0)


def photograph(
    surface: Canvas, regions: Sequence[NDArray[np.bool_]], rng: Rng
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """The plate as it lies below the camera, a little turned and shifted, its regions with it.

    Args:
        surface: float32 (H, W, 3) RGB, 0..255.
        regions: bool (H, W).

    Returns:
        uint8 (H, W, 3), and bool (H, W) of every region.
    """
    height, width = surface.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), float(np.clip(rng.normal(0, 0.5), -1.2, 1.2)), 1.0)
    turn[:, 2] += np.clip(rng.normal(0, 0.004, 2), -0.01, 0.01) * min(height, width)
    laid = cv2.warpAffine(surface, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    moved = [
        cv2.warpAffine(region.astype(np.uint8), turn, (width, height), flags=cv2.INTER_NEAREST) > 0
        for region in regions
    ]
    return finish(laid.astype(np.float32), rng), moved


STRUCTURAL: dict[str, Callable[[Canvas, Rng, tuple[float, float]], tuple[Canvas, NDArray[np.bool_]]]] = {
    "scratch": scratch,
    "dent": _dent,
}


def areas(size: Size) -> dict[str, float]:
    """Pixels, in an image of ``size`` (H, W), of a bolt, a washer, a sticker, and of both wires at one end."""
    height, width = size
    side = min(height, width)
    return {
        **{str(part): np.pi * (radius * side) ** 2 for part, radius in _PART_RADIUS.items()},
        "sticker": _STICKER_SIZE[0] * _STICKER_SIZE[1] * side**2,
        "wires": 2 * 2 * _WIRE_RADIUS * side * (_BLOCK_X[0] - _BLOCK_SIZE[1] / 2) * width,
    }
