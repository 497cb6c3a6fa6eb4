"""The detector: frames in, verdicts out. Tiles stream through the sessions and their maps into one accumulator.

Symbols: B batch, H, W image size, h, w tile size, T tiles.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Manifest, Normalisation, NormalisationStage
from edge_ad.errors import (
    BundleError,
    ColorError,
    DetectorClosedError,
    ForkedError,
    FrameError,
    GeometryError,
    InferenceError,
    InputError,
    NonFiniteOutputError,
)
from edge_ad.imaging import Color, check_bits, resize, to_image
from edge_ad.proportions import misfit
from edge_ad.records import from_plain
from edge_ad.roi import Roi
from edge_ad.runtime.background import Drop
from edge_ad.runtime.capture import Source, check_source
from edge_ad.runtime.faults import LOGGER, Action, FaultPolicy, Ledger, Stats
from edge_ad.runtime.feature_windows import FeatureWindows
from edge_ad.runtime.fusion import fuse_maps, fuse_scores
from edge_ad.runtime.graphs import check_graphs
from edge_ad.runtime.normalisation import normalise, rescale
from edge_ad.runtime.raw_result import RawResult
from edge_ad.runtime.result import Result
from edge_ad.runtime.seams import SeamSmoother
from edge_ad.runtime.session import Session
from edge_ad.runtime.stopwatch import Stopwatch
from edge_ad.runtime.stream import Stream, StreamOptions, close_streams
from edge_ad.setups import ExtractorScope
from edge_ad.tiling import WHOLE, Location, MapMerger, Size
from edge_ad.workers import finish, under_way

CLOSE_TIMEOUT_S = 30.0  # above any call's time


class Detector:
    """Runs a bundle's graphs on frames. Make one with `edge_ad.load`.

    Safe to use from several threads: a lock lets one call run at a time. For parallel work load one per thread. It
    cannot be taken to another process, by fork or by pickle: load one there.

    Args:
        manifest: what to do with inputs and outputs.
        shared: session of the extractor, or None for a method without one.
        heads: sessions of the tile models in the order of ``manifest.setup.model_locations``.
        batch_size: largest number of images in one call of `raw`, the sessions' own batch size.
        roi: where to look; everywhere where None.

    Attributes:
        grid: the tile plan.
        manifest_digest: first 16 digits of the digest of the bundle's manifest.json, which names thresholds and graphs;
            None where the detector was not loaded from a bundle, or has other thresholds.

    Raises:
        BundleError: inputs or outputs of a session are not those of the manifest's tiles.
    """

    def __init__(
        self,
        manifest: Manifest,
        shared: Session | None,
        heads: Sequence[Session],
        *,
        batch_size: int = 1,
        roi: Roi | None = None,
    ) -> None:
        setup = manifest.setup
        self.manifest = manifest
        self.manifest_digest: str | None = None
        self.grid = setup.grid
        self.batch_size = batch_size
        self.roi = roi
        self.shared = shared
        self.heads = dict(zip(setup.model_locations, heads, strict=True))
        self._windows = self._new_windows()
        check_graphs(shared, self.heads, setup, self._windows)
        self._cuts_tiles = self._windows is None or any("image" in head.inputs for head in heads)
        self._tile = np.zeros((batch_size, *self.grid.tile_size, 3), np.uint8)
        if self._windows:
            self._padded = np.zeros((batch_size, *self.grid.padded_size, 3), np.uint8)
        self._scaled = np.zeros((batch_size, *self.grid.tile_size), np.float32)
        self._places = [place for place, tile in enumerate(self.grid.locations) if tile not in setup.blank_tiles]
        self._tile_scores = np.full((batch_size, len(self.grid)), np.nan, np.float32)
        self._merger = self._new_merger()
        merge = manifest.merge
        has_seams = merge.seam_band > 0 and len(self.grid) > 1
        self._smooth = SeamSmoother(self.grid, merge.seam_sigma_px, merge.seam_band) if has_seams else None
        self._pid = os.getpid()
        self._misfit_told = False
        # Shared with the copies of `with_normalisation`:
        self._turn = _Turn()
        self._closed = threading.Event()
        self._ledger = Ledger()

    @property
    def image_size(self) -> Size:
        """(H, W) that every frame is resized to."""
        return self.manifest.setup.image_size

    @property
    def inside(self) -> NDArray[np.bool_] | None:
        """(H, W) True where the region of interest is; None where that is everywhere."""
        return self.roi.inside if self.roi else None

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The extractor's session, where there is one, then the heads'."""
        return (*([self.shared] if self.shared else []), *self.heads.values())

    @property
    def device(self) -> str:
        """What the graphs run on, as the engine reports it; joined by "+" where they differ."""
        return "+".join(dict.fromkeys(session.device for session in self.sessions))

    @property
    def precision(self) -> str:
        """What the float parts run in, as the engine reports it; the extractor's + the heads' where they differ."""
        return "+".join(dict.fromkeys(session.precision for session in self.sessions))

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"Detector({manifest.method.name} {manifest.setup}, {manifest.precision} {manifest.format} "
            f"on {self.device} in {self.precision}, batch {self.batch_size})"
        )

    def __call__(
        self,
        frame: NDArray[Any],
        *,
        color: Color | str,
        bits: int | None = None,
        frame_id: int | str | None = None,
    ) -> Result:
        """Inspect one frame.

        Args:
            frame: (height, width, 3); with alpha (height, width, 4); for mono (height, width) or (height, width, 1).
                uint8, or uint16 with ``bits``. Any size: it is resized to `image_size`.
            color: ``"rgb"``, ``"bgr"`` (OpenCV), ``"mono"``; ``"rgba"`` or ``"bgra"``, whose alpha is dropped.
                Declared, never guessed.
            bits: significant bits of a uint16 frame (10, 12, 16); None, or 8, for a uint8 frame.
            frame_id: passed into the result.

        Raises:
            FrameError, ColorError: the frame is not what was declared.
            InputError: ``bits`` are not 8 to 16.
            InferenceError: the engine failed, or the bundle's folder is gone and a memory budget makes heads take
                turns; its kinds: `NonFiniteOutputError`, `DetectorClosedError`, `ForkedError`.
        """
        watch = Stopwatch()
        raw = self.infer(frame, color=color, bits=bits, watch=watch)
        return self.conclude(raw, frame, color=Color(color), bits=bits, watch=watch, frame_id=frame_id)

    def infer(self, frame: NDArray[Any], *, color: Color | str, bits: int | None, watch: Stopwatch) -> RawResult:
        """The first half of a call, which needs the engine: as `raw`, but neither smoothed nor fused."""
        with under_way():
            image = to_image(frame, color, bits, self.image_size)
            self.check_proportions((frame.shape[0], frame.shape[1]))
            watch.lap("convert")
            return self._merge_tiles(image[None], watch)

    def conclude(
        self,
        raw: RawResult,
        frame: NDArray[Any],
        *,
        color: Color,
        bits: int | None,
        watch: Stopwatch,
        frame_id: int | str | None,
    ) -> Result:
        """The second half, which any thread may do: smooths the seams of ``raw`` in place, fuses, and judges."""
        with under_way():
            raw = self._finish(raw, watch)
        score, raw_map = float(raw.scores[0]), raw.maps[0]
        norm = self.manifest.normalisation
        if norm.stage is NormalisationStage.NONE:
            pred_score, anomaly_map = score, raw_map.copy()
        else:
            pred_score, anomaly_map = float(normalise(raw.scores, norm.score)[0]), normalise(raw_map, norm.map)
        # Of raw values: at its threshold a scaled one is 0.5 but for rounding
        is_anomalous = bool(raw.scores[0] >= np.float32(norm.score.threshold))
        mask = raw_map >= np.float32(norm.map.threshold)
        watch.lap("post")
        return Result(
            pred_score=pred_score,
            pred_label=is_anomalous,
            anomaly_map=anomaly_map,
            pred_mask=mask,
            raw_score=score,
            raw_map=raw_map,
            tile_scores=raw.tile_scores[0],
            frame=frame,
            color=color,
            bits=bits,
            timings_ms=watch.stop(),
            frame_id=frame_id,
            is_normalised=norm.stage is not NormalisationStage.NONE,
            device=self.device,
        )

    def check_proportions(self, frame: Size) -> None:
        """Log, once, that frames (H, W) are not of the training images' proportions; where those are known."""
        if not self._misfit_told and (reason := misfit(frame, self.manifest.input.proportions, self.image_size)):
            self._misfit_told = True
            LOGGER.warning(reason)

    def raw(self, images: NDArray[np.uint8]) -> RawResult:
        """Merged scores and maps of ``images`` uint8 (B, H, W, 3) RGB at `image_size`, 1 <= B <= `batch_size`.

        The step that benchmarks time: from images in host memory to maps as numpy arrays. At normalisation stage
        "tile" the tiles are scaled before they are merged. With a global model scores and maps are fused with its own,
        see `edge_ad.runtime.fusion`; while no `Fusion` is fitted yet they are those of the tiles.

        Raises:
            FrameError: not such images.
            InferenceError: as for one frame.
        """
        watch = Stopwatch()
        with under_way():
            return self._finish(self._merge_tiles(images, watch), watch)

    def tiles(self, images: NDArray[np.uint8]) -> list[tuple[Location, NDArray[np.float32], NDArray[np.float32]]]:
        """Of every tile that is run, in grid order, location, scores (B,) and maps (B, h, w) as the model gave them.

        They are copies. Args and errors as in `raw`.
        """
        count = len(images)
        found = []
        with under_way(), self._call():
            for location, scores, maps in self._run_tiles(self._seen(images), Stopwatch()):
                self._check_finite(maps[:count], location)
                found.append((location, scores[:count].copy(), maps[:count].copy()))
        return found

    def stream(
        self,
        source: Source,
        *,
        color: Color | str,
        bits: int | None = None,
        drop: Drop | str = Drop.NEVER,
        queue_size: int = 4,
        copy: bool = True,
        policy: FaultPolicy = FaultPolicy(),  # noqa: B008 - frozen
        standby: Detector | None = None,
        name: str | None = None,
    ) -> Stream:
        """Results of the frames of ``source`` in order. Capture, inference and the reader's own work overlap.

        Args:
            source: any iterable of frames, which stays its owner's to close; or a callable that opens one, so that
                the policy can open it again. What it opened is closed: by leaving it where it is a context manager,
                which is entered first and gives the frames; else by its ``close()``, else by its ``release()``.
                For a camera that calls back see `edge_ad.frames_from`. Bare arrays are numbered from 0; a `Frame`
                brings its own ``frame_id``, and what else its camera knows.
            color, bits: as for one frame.
            drop: what gives way when frames come faster than results: ``"never"`` (the source waits), ``"oldest"``
                or ``"newest"`` of those in the queue.
            queue_size: frames that may wait.
            copy: copy each frame as it comes, for many cameras fill one buffer over and over: a millisecond for five
                megapixels in colour, in the thread of capture. False where every frame is an array of its own.
            policy: what to do about faults; each is raised unless it says otherwise. `stats` counts them.
            standby: a detector of the same bundle on another device, for the policy ``"fall_back"``. After an engine's
                failure it takes over for good; after NaN or infinity for that frame.
            name: of the camera, with which log lines of this stream begin.

        Closing the stream, from any thread, or the detector stops its threads. An exception of the source is raised
        here, after the results of the frames before it.

        Raises:
            ColorError: unknown colour order.
            InputError: an argument is out of range, or does not fit the others; the source is nothing that gives
                frames. What a callable opens is looked at with the first result.
        """
        check_source(source, policy)
        check_bits(bits)
        if queue_size < 1:
            raise InputError(f"queue_size: expected at least 1, but got {queue_size}")
        if (standby is not None) != (Action.FALL_BACK in policy.actions):
            raise InputError("standby: expected a detector where the policy falls back, and none where it does not")
        if standby is not None and standby.manifest != self.manifest:
            raise InputError("standby: expected a detector of the same bundle and thresholds")
        if standby is not None and standby._ledger is self._ledger:  # itself, or a copy of `with_normalisation`
            raise InputError("standby: expected another detector, but got this one; load the bundle a second time")
        options = StreamOptions(
            color=from_plain(Color, color, "color", ColorError),
            bits=bits,
            drop=from_plain(Drop, drop, "drop"),
            queue_size=queue_size,
            policy=policy,
            standby=standby,
            copy=copy,
        )
        return Stream(self, source, options, Ledger(whole=self._ledger, name=name))

    def stats(self) -> Stats:
        """What became of the frames of all streams since the detector was loaded, and of their faults.

        Of one stream: `Stream.stats`.
        """
        return self._ledger.stats()

    def with_normalisation(self, normalisation: Normalisation) -> Detector:
        """The same detector with other thresholds. They share sessions and lock: closing one closes both."""
        other = Detector.__new__(Detector)
        other.__dict__.update(self.__dict__)
        other.manifest = replace(self.manifest, normalisation=normalisation)
        other.manifest_digest = None
        other._merger = self._new_merger()
        return other

    def close(self) -> None:
        """End its streams, and free the sessions once the call in progress has ended. Idempotent.

        A call that does not come back in `CLOSE_TIMEOUT_S`, since the engine hangs, is left behind with its session.
        A call of this thread, which a signal's handler interrupts to close the detector, ends first, and then frees
        them. A forked child frees nothing.
        """
        if os.getpid() != self._pid:
            return
        self._closed.set()
        close_streams(self._ledger, DetectorClosedError("the detector was closed while its stream was read"))
        if self._turn.is_mine:
            return
        if not self._turn.take(CLOSE_TIMEOUT_S):
            LOGGER.warning("the engine has not come back for %g s and is left behind", CLOSE_TIMEOUT_S)
            return
        try:
            self._close_sessions()
        finally:
            self._turn.leave()

    def _close_sessions(self) -> None:
        for session in self.sessions:
            session.close()

    def __reduce__(self) -> NoReturn:
        raise ForkedError("a detector cannot be sent to another process; load the bundle there")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _merge_tiles(self, images: NDArray[np.uint8], watch: Stopwatch) -> RawResult:
        """See `infer`."""
        with self._call():
            watch.lap("wait")
            images = self._seen(images)
            norm = self.manifest.normalisation
            by_tile = norm.stage is NormalisationStage.TILE
            scaled_scores = np.empty_like(self._tile_scores)
            try:
                for place, (location, scores, maps) in zip(self._places, self._run_tiles(images, watch), strict=True):
                    self._tile_scores[:, place] = scores
                    scaled_scores[:, place] = rescale(scores, norm.tile_score[place]) if by_tile else scores
                    scaled = rescale(maps, norm.tile_map[place], out=self._scaled) if by_tile else maps
                    self._merger.add(location, scaled)
                    watch.lap("merge")
            except BaseException:
                self._merger = self._new_merger()  # the old one holds part of this image
                raise
            count = len(images)
            merged = self._merger.result()[:count]
            self._check_merged(merged)
            scores = self.manifest.merge.score.of(scaled_scores[:count, self._places])
            tile_scores = self._tile_scores[:count].copy()
            watch.lap("merge")
            whole = self._run_whole(images, watch) if self.manifest.setup.global_model else ()
            return RawResult(scores, merged, tile_scores, watch.laps_ms, *whole)

    def _finish(self, raw: RawResult, watch: Stopwatch) -> RawResult:
        """``raw`` of `infer`, in place: seams smoothed, fused with the global model, quiet outside of the region."""
        if self._smooth:
            self._smooth(raw.maps)
        watch.lap("seams")
        fusion, whole_scores, whole_maps = self.manifest.normalisation.fusion, raw.global_scores, raw.global_maps
        if fusion and whole_scores is not None and whole_maps is not None:
            scores, maps = fuse_scores(raw.scores, whole_scores, fusion), fuse_maps(raw.maps, whole_maps, fusion)
            raw = replace(raw, scores=scores, maps=maps)
            watch.lap("fuse")
        if self.roi:
            self.roi.quieten(raw.maps)
            watch.lap("roi")
        return replace(raw, timings_ms=watch.stop())

    @contextmanager
    def _call(self) -> Iterator[None]:
        """One call at a time."""
        self._check_process()
        if self._turn.is_mine:
            raise InferenceError(
                "this detector is in the midst of a call, which a signal's handler interrupts to call it"
            )
        self._turn.take()
        try:
            yield
        finally:
            if self._closed.is_set():  # by a signal's handler in this thread, or by another one, which waits
                self._close_sessions()
            self._turn.leave()

    def _new_windows(self) -> FeatureWindows | None:
        """Where the extractor sees the whole image. Raises `BundleError` where its outputs do not fit the tiles."""
        if self.shared is None or self.manifest.setup.extractor_scope is not ExtractorScope.IMAGE:
            return None
        try:
            return FeatureWindows(self.grid, self.shared.outputs, self.manifest.feature_axes, self.batch_size)
        except GeometryError as error:
            raise BundleError(f"the shared graph: {error}") from error

    def _new_merger(self) -> MapMerger:
        return MapMerger(self.grid, (self.batch_size,), self.manifest.setup.blank_tiles)

    def _run_tiles(
        self, images: NDArray[np.uint8], watch: Stopwatch
    ) -> Iterator[tuple[Location, NDArray[np.float32], NDArray[np.float32]]]:
        """As `tiles`, for a whole batch: entries from ``len(images)`` on mean nothing."""
        features = None
        if self._windows:
            features = self._features_of(images)
            watch.lap("infer")
        for place in self._places:
            location = self.grid.locations[place]
            feeds: dict[str, Any] = {"image": self._cut(images, location)} if self._cuts_tiles else {}
            if self._windows and features:
                feeds |= self._windows.cut(features, location)
            watch.lap("tiles")
            scores, maps = self._infer(feeds, location)
            watch.lap("infer")
            self._check_finite(scores[: len(images)], location)
            yield location, scores, maps

    def _run_whole(
        self, images: NDArray[np.uint8], watch: Stopwatch
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores (B,) and maps (B, h, w) of the global model, copies."""
        for small, image in zip(self._tile, images, strict=False):
            small[:] = resize(image, self.grid.tile_size)
        watch.lap("tiles")
        scores, maps = (values[: len(images)].copy() for values in self._infer({"image": self._tile}, WHOLE))
        watch.lap("infer")
        self._check_finite(scores, WHOLE)
        self._check_finite(maps, WHOLE)
        return scores, maps

    def _features_of(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Feature maps (batch, C, h', w') of the whole padded images, valid until the extractor runs again."""
        assert self.shared is not None
        height, width = self.grid.image_size
        self._padded[: len(images), :height, :width] = images
        outputs = self.shared.run({"image": self._padded})
        return {name: self.shared.fetch(handle) for name, handle in outputs.items()}

    def _infer(self, feeds: Mapping[str, Any], location: Location) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores and maps of a whole batch of tiles by the model of ``location``: views into the session's outputs.

        Args:
            feeds: the tiles; with features, where the extractor has run already.
        """
        head = self.heads[self.manifest.setup.model_of(location)]
        if self.shared and not self._windows:
            feeds = {**feeds, **self.shared.run(feeds)}
        outputs = head.run({name: feeds[name] for name in head.inputs})
        scores, maps = head.fetch(outputs["pred_score"]), head.fetch(outputs["anomaly_map"])
        # Engines take shapes from constants while they run: those of the compiled graph are no promise
        if scores.shape != (self.batch_size,) or maps.shape != (self.batch_size, 1, *self.grid.tile_size):
            raise InferenceError(
                f"tile {location.name}: the model gave scores {scores.shape} and maps {maps.shape} on {head.device}, "
                "which are not its graph's; the bundle is damaged: export it again"
            )
        return scores, maps[:, 0]

    def _check_finite(self, values: NDArray[np.float32], *tiles: Location) -> None:
        """Raise `NonFiniteOutputError` for the model of ``tiles`` unless ``values`` are finite numbers."""
        if not _are_finite(values):
            head = self.heads[self.manifest.setup.model_of(tiles[0])]
            names = " or ".join(tile.name for tile in tiles)
            raise NonFiniteOutputError(
                f"tile {names}: the model gave NaN or infinity on {head.device} in {head.precision}"
            )

    def _check_merged(self, merged: NDArray[np.float32]) -> None:
        """`_check_finite` of all tiles at once: of ``merged`` (B, H, W) every pixel once, however many tiles it has."""
        if not _are_finite(merged):
            image, row, col = np.argwhere(~np.isfinite(merged))[0]
            blank = self.manifest.setup.blank_tiles
            tiles = [tile for tile in self.grid.covering(row, col) if tile not in blank]
            self._check_finite(merged[image, row, col], *tiles)

    def _cut(self, images: NDArray[np.uint8], location: Location) -> NDArray[np.uint8]:
        """The tile (batch_size, h, w, 3) at ``location``: zero where it reaches over the image's edge.

        In the detector's buffer, always: to feed an engine with other memory each time costs more than the copy.
        """
        rows, cols = self.grid.window(location)
        tile = images[:, rows, cols]  # slices end at the image's edge
        count, height, width, _ = tile.shape
        if (height, width) != self.grid.tile_size:
            self._tile.fill(0)
        self._tile[:count, :height, :width] = tile
        return self._tile

    def _check_process(self) -> None:
        """Before the turn is taken: at the fork, a thread that is not in the child may have had it."""
        if os.getpid() != self._pid:
            raise ForkedError(
                "this detector was loaded before the process was forked, and the engine's threads are not in the "
                "child; load the bundle there, or start processes by 'spawn'"
            )

    def _seen(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What of ``images`` the models are shown, once they are what was asked for."""
        if self._closed.is_set():
            raise DetectorClosedError("this detector is closed; load the bundle again")
        expected = (*self.image_size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected or not 1 <= len(images) <= self.batch_size:
            raise FrameError(
                f"expected 1 to {self.batch_size} images uint8 of {expected}, but got {images.dtype} {images.shape}"
            )
        return self.roi.paint(images) if self.roi else images


def _are_finite(values: NDArray[np.float32]) -> bool:
    """Sums are finite where every term is, but for the largest numbers of float32: one pass instead of a mask."""
    return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


class _Turn:
    """Whose turn it is to use the sessions: one thread's at a time, which is known."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None

    @property
    def is_mine(self) -> bool:
        """Whether this thread has it."""
        return self._thread == threading.get_ident()

    def take(self, timeout_s: float = -1) -> bool:
        """Wait for it, ``timeout_s`` at most where that is not negative; False where it did not come."""
        if not self._lock.acquire(timeout=timeout_s):
            return False
        self._thread = threading.get_ident()
        return True

    def leave(self) -> None:
        """Let the next one have it."""
        self._thread = None
        self._lock.release()


def _end() -> None:
    close_streams()  # and their cameras
    finish()


atexit.register(_end)
