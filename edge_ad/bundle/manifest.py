"""The manifest of a bundle: what is in it, how images go in, how maps and scores come out.

Dataclasses mirror ``manifest.json`` field by field; `Manifest.to_json` and `Manifest.from_json` are exact inverses.
Unknown fields, missing ones that have no default, and wrong types are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import GeometryError, ManifestError, UnknownSchemaError
from edge_ad.proportions import Proportions
from edge_ad.records import from_plain, to_plain
from edge_ad.setups import ExtractorScope, Setup
from edge_ad.tiling import FeatureAxes

SCHEMA_VERSION = 1
ALPHAS = ("drop", "black", "white")  # of edge_ad.imaging, which loads OpenCV: not every command needs it

# What a manifest may ask for, checked before anything is allocated: a detector holds some ten arrays of these sizes.
IMAGE_MAX_PIXELS = 2**27
TILES_MAX = 10_000
SEAM_MAX_PX = 1000
FILE_MAX_BYTES = 2**31  # of one file; protobuf ends there too
NESTING_MAX = 32  # of objects and lists; ours is 6 deep, and Python walks a thousand levels at most
TOLERANCE_MAX = 1e6  # of a golden value, of its scale; equal images make scales a millionth of their values wide


class Format(StrEnum):
    """Graph format, and with it the engine."""

    OPENVINO = "openvino"
    ONNX = "onnx"


class Precision(StrEnum):
    """Storage precision of a bundle's graphs. What is executed is a matter of the device: see `ExecutionPrecision`."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Role(StrEnum):
    """What a graph does."""

    SHARED = "shared"  # image -> features..., the same for every tile
    HEAD = "head"  # image?, features... -> anomaly_map, pred_score


class ScoreMerge(StrEnum):
    """How tile scores become the image score."""

    MEAN = "mean"
    MAX = "max"

    def of(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Image scores (N,) of those of tiles (N, T)."""
        merged: NDArray[np.float32] = scores.mean(axis=1) if self is ScoreMerge.MEAN else scores.max(axis=1)
        return merged


class NormalisationStage(StrEnum):
    """Where raw values are mapped so that 0.5 lies at the threshold."""

    IMAGE = "image"  # merged values
    TILE = "tile"  # every location by its own statistics before merging, then the merged values
    NONE = "none"  # values stay raw


GOLDEN_CELLS = 8  # along either side of a golden image's map
FILES_PER_GRAPH = {Format.OPENVINO: 2, Format.ONNX: 1}  # at most: an IR and its constants; all in one


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle. ``path`` is relative, with forward slashes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Graph:
    """One graph: its files (the first is the one to open) and what is known of its cost for one run."""

    role: Role
    location: tuple[int, int] | None  # of the model; None for the shared graph
    precision: Precision
    files: tuple[FileEntry, ...]
    keep_f32: bool  # execute in f32 even where the device's default is lower: some distances lose their ranking there
    parameters: int
    flops: int  # multiply and add counted apart, batch 1

    @property
    def size_bytes(self) -> int:
        """Of its files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class InputSpec:
    """What the camera must give. Graphs take uint8 NHWC RGB tiles; the runtime converts and resizes to `Setup`."""

    color: str  # "rgb"
    resize: str  # "area": cv2.INTER_AREA to shrink, cv2.INTER_LINEAR to enlarge
    bits: int | None = None  # significant ones of the 16-bit files it was trained on; None: all, or 8-bit files
    alpha: str = "drop"  # what was done with their alpha channels, see `edge_ad.imaging.Alpha`
    proportions: Proportions | None = None  # of those files; None: an earlier release did not say


@dataclass(frozen=True)
class Merge:
    """How tiles become one result."""

    score: ScoreMerge
    seam_sigma_px: float
    seam_band: float  # of the tile size; 0 switches seam smoothing off


@dataclass(frozen=True)
class Scale:
    """Raw values to [0, 1]: ``low`` maps to 0, ``threshold`` to 0.5, linearly, clipped.

    Normal images lie between ``low`` and ``threshold``.
    """

    low: float
    threshold: float


@dataclass(frozen=True)
class Fusion:
    """Scales that make merged tiles and a global model comparable: each by its own held-out values."""

    tiles_score: Scale
    tiles_map: Scale
    global_score: Scale
    global_map: Scale


@dataclass(frozen=True)
class Normalisation:
    """Thresholds and scales, fitted on held-out normal images (or by F1-max where labelled data was given)."""

    stage: NormalisationStage
    rule: str  # how the thresholds were chosen, e.g. "sigma 3 on 12 held-out normal images"
    score: Scale
    map: Scale
    tile_score: tuple[Scale, ...]  # one per tile in grid order at stage "tile", else empty
    tile_map: tuple[Scale, ...]
    fusion: Fusion | None = None  # where the setup has a global model; score and map are then those of fused values


@dataclass(frozen=True)
class Golden:
    """An image with what the exporter computed of it in float32 with this bundle's own graphs: raw score and map."""

    label: str  # "normal" or "anomalous"
    file: FileEntry
    raw_score: float
    raw_map: tuple[float, ...] = ()  # its means over `GOLDEN_CELLS` x `GOLDEN_CELLS` areas, row by row; () is unchecked
    map_tolerance: float = 0.0  # how far such a mean may be off elsewhere, raw
    score_tolerance: float | None = None  # likewise of the score; None: `Manifest.parity_tolerance`


@dataclass(frozen=True)
class Parity:
    """Trained model against exported graphs, over some images, at one execution precision."""

    execution_precision: str  # what the engine ran: "f32", "bf16", ...
    device: str
    images: int
    map_max_abs: float
    map_max_rel: float  # of the reference map's range
    score_max_abs: float
    score_rank_correlation: float  # Spearman
    label_flips: int


@dataclass(frozen=True)
class Method:
    """What was trained."""

    name: str
    backbone: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Provenance:
    """Where the bundle comes from."""

    created_utc: str  # ISO 8601
    versions: dict[str, str]
    seed: int
    data_digest: str  # sha256 over the training images' digests
    training_images: int
    weights: str  # source of the pretrained weights


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime needs to know. See the module docstring."""

    schema_version: int
    format: Format
    precision: Precision
    method: Method
    setup: Setup
    input: InputSpec
    merge: Merge
    normalisation: Normalisation
    graphs: tuple[Graph, ...]
    golden: tuple[Golden, ...]
    parity: tuple[Parity, ...]
    parity_tolerance: float  # of a golden score without a tolerance of its own, in units of its threshold - low
    provenance: Provenance
    feature_axes: FeatureAxes = FeatureAxes.NCHW
    roi: FileEntry | None = None  # where to look: an image of the setup's size, see `edge_ad.roi`

    @property
    def shared(self) -> Graph | None:
        """The extractor's graph, or None for a method without one."""
        return next((graph for graph in self.graphs if graph.role is Role.SHARED), None)

    @property
    def heads(self) -> tuple[Graph, ...]:
        """The head graphs in the order of ``setup.model_locations``."""
        return tuple(graph for graph in self.graphs if graph.role is Role.HEAD)

    @property
    def in_running_order(self) -> tuple[Graph, ...]:
        """The extractor's graph, where there is one, then the heads'."""
        return (*([self.shared] if self.shared else []), *self.heads)

    def runs_per_image(self, graph: Graph) -> int:
        """How often an image runs a graph: the extractor for what it is shown, a head for the tiles of its model."""
        setup = self.setup
        if graph is self.shared:
            return 1 if setup.extractor_scope is ExtractorScope.IMAGE else len(setup.locations)
        return sum(setup.model_of(location) == graph.location for location in setup.locations)

    @property
    def flops_per_image(self) -> int:
        """Operations of all graphs over all tiles, multiplications and additions counted apart (2 x MAC)."""
        return sum(self.runs_per_image(graph) * graph.flops for graph in self.in_running_order)

    @property
    def parameters(self) -> int:
        """Of all graphs."""
        return sum(graph.parameters for graph in self.graphs)

    @property
    def size_bytes(self) -> int:
        """Of every file but the manifest itself."""
        return sum(file.size_bytes for file in self.files)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file but the manifest itself."""
        named = (*(golden.file for golden in self.golden), *([self.roi] if self.roi else []))
        return tuple(file for graph in self.graphs for file in graph.files) + named

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; `json.dumps` takes them as they are."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """The inverse of `to_json`.

        Raises:
            UnknownSchemaError: a schema_version this release does not read.
            ManifestError: a field is missing, unknown, or of the wrong type; the message gives its path.
        """
        if not isinstance(value, dict) or "schema_version" not in value:
            raise ManifestError("manifest.json: expected an object with schema_version")
        version = value["schema_version"]
        if version != SCHEMA_VERSION:
            raise UnknownSchemaError(
                f"manifest.json: schema_version {version!r} is not the {SCHEMA_VERSION} this edge-ad reads; "
                "export the bundle again, or install the edge-ad that made it"
            )
        if any(depth > NESTING_MAX for depth, _ in enumerate(_levels(value))):
            raise ManifestError(f"manifest.json: nested more than {NESTING_MAX} deep; export the bundle again")
        manifest: Manifest = from_plain(cls, value, "manifest.json", ManifestError)
        manifest._check()
        return manifest

    def _check_sizes(self) -> None:
        """Refuse absurd sizes by their products alone, before any grid or array is made of them."""
        setup = self.setup
        for name in ("image_size", "tile_size", "stride"):
            if any(not 1 <= length_px <= IMAGE_MAX_PIXELS for length_px in getattr(setup, name)):
                raise ManifestError(
                    f"manifest.json.setup.{name}: expected 1 to {IMAGE_MAX_PIXELS} px, but got {getattr(setup, name)}"
                )
        pixels = setup.image_size[0] * setup.image_size[1]
        if pixels > IMAGE_MAX_PIXELS:
            raise ManifestError(f"manifest.json.setup.image_size: {pixels} pixels; at most {IMAGE_MAX_PIXELS}")
        rows, cols = (-(-image // stride) for image, stride in zip(setup.image_size, setup.stride, strict=True))
        if rows * cols > TILES_MAX:  # an upper bound of the grid's: a tile at every stride
            raise ManifestError(f"manifest.json.setup: up to {rows * cols} tiles; at most {TILES_MAX}")
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ManifestError(f"manifest.json: {max(paths, key=paths.count)} is named twice")
        for file in self.files:
            if not 0 <= file.size_bytes <= FILE_MAX_BYTES:
                raise ManifestError(f"manifest.json: {file.path}: {file.size_bytes} bytes; at most {FILE_MAX_BYTES}")

    def _check(self) -> None:
        """What the types alone do not say."""
        self._check_sizes()
        try:
            expected = self.setup.model_locations
            tiles = len(self.setup.grid) if self.normalisation.stage is NormalisationStage.TILE else 0
        except GeometryError as error:
            raise ManifestError(f"manifest.json.setup: {error}") from error
        blank, grid = set(self.setup.blank_tiles), self.setup.grid
        if not blank < set(grid.locations):
            raise ManifestError(
                f"manifest.json.setup.blank_tiles: expected some of the {len(grid)} tiles, and not all, "
                f"but got {sorted(blank)}"
            )
        if tuple(graph.location for graph in self.heads) != tuple(tuple(location) for location in expected):
            raise ManifestError(
                f"manifest.json: expected one head per model location {[location.name for location in expected]}, "
                f"but got {[graph.location for graph in self.heads]}"
            )
        if sum(graph.role is Role.SHARED for graph in self.graphs) > 1:
            raise ManifestError("manifest.json: more than one shared graph")
        if any(not 1 <= len(graph.files) <= FILES_PER_GRAPH[self.format] for graph in self.graphs):
            raise ManifestError(
                f"manifest.json: expected 1 to {FILES_PER_GRAPH[self.format]} files per {self.format} graph, "
                f"but got {sorted({len(graph.files) for graph in self.graphs})}"
            )
        if (self.input.color, self.input.resize) != ("rgb", "area"):
            raise ManifestError(f"manifest.json.input: expected color rgb and resize area, but got {self.input}")
        if self.input.bits not in (None, *range(8, 17)) or self.input.alpha not in ALPHAS:
            raise ManifestError(
                f"manifest.json.input: expected 8 to 16 bits and alpha {', '.join(ALPHAS)}, but got {self.input}"
            )
        if self.input.proportions and not 0 < self.input.proportions[0] <= self.input.proportions[1]:
            raise ManifestError(
                f"manifest.json.input.proportions: expected two numbers above 0, the smaller one first, "
                f"but got {list(self.input.proportions)}"
            )
        if not (0 < self.merge.seam_sigma_px <= SEAM_MAX_PX and 0 <= self.merge.seam_band <= 1):
            raise ManifestError(
                f"manifest.json.merge: expected seam_sigma_px > 0, at most {SEAM_MAX_PX}, and seam_band in [0, 1]: "
                f"{self.merge}"
            )
        self._check_normalisation(tiles)
        self._check_golden()
        config = self.method.config
        if any(isinstance(item, float) and not math.isfinite(item) for level in _levels(config) for item in level):
            raise ManifestError(f"manifest.json.method.config: expected finite numbers, but got {config}")

    def _check_golden(self) -> None:
        norm = self.normalisation
        score_span, map_span = (scale.threshold - scale.low for scale in (norm.score, norm.map))
        tolerances = {"parity_tolerance": self.parity_tolerance}
        for index, golden in enumerate(self.golden):
            if len(golden.raw_map) not in (0, GOLDEN_CELLS**2):
                raise ManifestError(
                    f"manifest.json.golden: expected {GOLDEN_CELLS**2} values of a map, but got {len(golden.raw_map)}"
                )
            tolerances[f"golden[{index}].map_tolerance"] = golden.map_tolerance / map_span
            if golden.score_tolerance is not None:
                tolerances[f"golden[{index}].score_tolerance"] = golden.score_tolerance / score_span
        for name, tolerance in tolerances.items():
            if not 0 <= tolerance <= TOLERANCE_MAX:
                raise ManifestError(
                    f"manifest.json.{name}: expected 0 to {TOLERANCE_MAX:g} of the scale, but got {tolerance:g}"
                )

    def _check_normalisation(self, tiles: int) -> None:
        norm = self.normalisation
        if (norm.fusion is not None) != self.setup.global_model:
            raise ManifestError("manifest.json: normalisation: expected fusion with a global model, and only then")
        fused = (
            (norm.fusion.tiles_score, norm.fusion.tiles_map, norm.fusion.global_score, norm.fusion.global_map)
            if norm.fusion
            else ()
        )
        for scale in (norm.score, norm.map, *norm.tile_score, *norm.tile_map, *fused):
            if scale.low >= scale.threshold:
                raise ManifestError(f"manifest.json.normalisation: expected low < threshold, but got {scale}")
            if not _fits_float32(scale):
                raise ManifestError(
                    f"manifest.json.normalisation: {scale} is no scale in float32, in which maps are scaled; "
                    "export the bundle again"
                )
        if len(norm.tile_score) != tiles or len(norm.tile_map) != tiles:
            raise ManifestError(f"manifest.json: normalisation: expected {tiles} tile scales")


def _fits_float32(scale: Scale) -> bool:
    """Whether both ends are numbers in float32, apart from each other there, and so is the gain between them."""
    with np.errstate(over="ignore", under="ignore"):
        low, threshold = np.float32(scale.low), np.float32(scale.threshold)
        gain = np.float32(0.5 / (scale.threshold - scale.low))
        return bool(low < threshold and np.isfinite([low, threshold, gain]).all() and gain > 0)


def _levels(value: Any) -> Iterator[list[Any]]:
    """``value``, then what lies in it, then what lies in that, and so on; without recursion, however deep it is."""
    level = [value]
    while level:
        yield level
        parts = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level = [item for part in parts for item in part]
