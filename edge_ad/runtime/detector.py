"""The detector: frames in, verdicts out. Tiles stream through the sessions and their maps into one accumulator.

Symbols: B batch, H, W image size, h, w tile size, T tiles.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Manifest, Normalisation, NormalisationStage
from edge_ad.errors import (
    ColorError,
    DetectorClosedError,
    ForkedError,
    InputError,
)
from edge_ad.imaging import Color, check_bits, to_image
from edge_ad.proportions import misfit
from edge_ad.records import from_plain
from edge_ad.roi import Roi
from edge_ad.runtime.background import Drop
from edge_ad.runtime.capture import Source, check_source
from edge_ad.runtime.faults import LOGGER, Action, FaultPolicy, Ledger, Stats
from edge_ad.runtime.fusion import fuse_maps, fuse_scores
from edge_ad.runtime.normalisation import normalise, rescale
from edge_ad.runtime.raw_result import RawResult
from edge_ad.runtime.result import Result
from edge_ad.runtime.seams import SeamSmoother
from edge_ad.runtime.session import Session
from edge_ad.runtime.stopwatch import Stopwatch
from edge_ad.runtime.stream import Stream, StreamOptions, close_streams
from edge_ad.runtime.tile_runner import TileRunner
from edge_ad.tiling import Location, MapMerger, Size
from edge_ad.workers import finish, under_way


class Detector:
    """Runs a bundle's graphs on frames. Make one with `edge_ad.load`.

    Safe to use from several threads: one call runs at a time. For parallel work load one per thread, with ``threads``
    for each. It cannot be taken to another process, by fork or by pickle: load one there.

    Args:
        manifest: what to do with inputs and outputs.
        shared: session of the extractor, or None for a method without one.
        heads: sessions of the tile models in the order of ``manifest.setup.model_locations``.
        batch_size: largest number of images in one call of `raw`, the sessions' own batch size.
        roi: where to look; everywhere where None.

    Attributes:
        runner: what runs the graphs; detectors of `with_normalisation` have the same.
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
        runner = TileRunner(manifest.setup, manifest.feature_axes, shared, heads, batch_size)
        self._begin(manifest, runner, roi, Ledger())

    def _begin(self, manifest: Manifest, runner: TileRunner, roi: Roi | None, ledger: Ledger) -> None:
        self.manifest = manifest
        self.manifest_digest: str | None = None
        self.runner = runner
        self.grid = runner.grid
        self.batch_size = runner.batch_size
        self.roi = roi
        self._ledger = ledger
        self._scaled = np.zeros((self.batch_size, *self.grid.tile_size), np.float32)
        self._tile_scores = np.full((self.batch_size, len(self.grid)), np.nan, np.float32)
        self._merger = self._new_merger()
        merge = manifest.merge
        has_seams = merge.seam_band > 0 and len(self.grid) > 1
        self._smooth = SeamSmoother(self.grid, merge.seam_sigma_px, merge.seam_band) if has_seams else None
        self._misfit_told = False

    @property
    def image_size(self) -> Size:
        """(H, W) that every frame is resized to."""
        return self.manifest.setup.image_size

    @property
    def inside(self) -> NDArray[np.bool_] | None:
        """(H, W) True where the region of interest is; None where that is everywhere."""
        return self.roi.inside if self.roi else None

    @property
    def shared(self) -> Session | None:
        """The extractor's session; None for a method without one."""
        return self.runner.shared

    @property
    def heads(self) -> dict[Location, Session]:
        """The tile models' sessions by location."""
        return self.runner.heads

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The extractor's session, where there is one, then the heads'."""
        return self.runner.sessions

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
        with under_way(), self.runner.call():
            for location, scores, maps in self.runner.tiles(self._seen(images), Stopwatch()):
                self.runner.check_finite(maps[:count], location)
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
        other._begin(replace(self.manifest, normalisation=normalisation), self.runner, self.roi, self._ledger)
        return other

    def close(self) -> None:
        """End its streams, and free the sessions once the call in progress has ended. Idempotent.

        A call that does not come back in 30 s, since the engine hangs, is left behind with its session. A call of this
        thread, which a signal's handler interrupts to close the detector, ends first, and then frees them. A forked
        child frees nothing.
        """
        if self.runner.is_elsewhere:
            return
        self.runner.is_closed.set()  # before the streams end: no call begins any more
        close_streams(self._ledger, DetectorClosedError("the detector was closed while its stream was read"))
        self.runner.close()

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
        with self.runner.call():
            watch.lap("wait")
            images = self._seen(images)
            norm = self.manifest.normalisation
            by_tile = norm.stage is NormalisationStage.TILE
            scaled_scores = np.empty_like(self._tile_scores)
            try:
                tiles = self.runner.tiles(images, watch)
                for place, (location, scores, maps) in zip(self.runner.places, tiles, strict=True):
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
            self.runner.check_merged(merged)
            scores = self.manifest.merge.score.of(scaled_scores[:count, self.runner.places])
            tile_scores = self._tile_scores[:count].copy()
            watch.lap("merge")
            whole = self.runner.whole(images, watch) if self.manifest.setup.global_model else ()
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

    def _new_merger(self) -> MapMerger:
        return MapMerger(self.grid, (self.batch_size,), self.manifest.setup.blank_tiles)

    def _seen(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What of ``images`` the models are shown, once they are what was asked for."""
        self.runner.check_images(images)
        return self.roi.paint(images) if self.roi else images


def _end() -> None:
    close_streams()  # and their cameras
    finish()


atexit.register(_end)
