"""The graphs of a bundle, run over the tiles of images: one call at a time, in buffers that stay.

Symbols: B batch, H, W image size, h, w tile size.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import (
    BundleError,
    DetectorClosedError,
    ForkedError,
    FrameError,
    GeometryError,
    InferenceError,
    NonFiniteOutputError,
)
from edge_ad.imaging import resize
from edge_ad.runtime.faults import LOGGER
from edge_ad.runtime.feature_windows import FeatureWindows
from edge_ad.runtime.graphs import check_graphs
from edge_ad.runtime.session import Session
from edge_ad.runtime.stopwatch import Stopwatch
from edge_ad.setups import ExtractorScope, Setup
from edge_ad.tiling import WHOLE, FeatureAxes, Location

CLOSE_TIMEOUT_S = 30.0  # above any call's time


class TileRunner:
    """Runs the extractor and the tile models of a bundle.

    Args:
        setup: the tiles.
        feature_axes: of the extractor's outputs.
        shared: session of the extractor, or None for a method without one.
        heads: sessions of the tile models in the order of ``setup.model_locations``.
        batch_size: the sessions' own.

    Attributes:
        heads: by location of the model.
        places: numbers, in grid order, of the tiles that are run.
        is_closed: set once `close` was asked for.

    Raises:
        BundleError: inputs or outputs of a session are not those of the tiles.
    """

    def __init__(
        self,
        setup: Setup,
        feature_axes: FeatureAxes,
        shared: Session | None,
        heads: Sequence[Session],
        batch_size: int,
    ) -> None:
        self.setup = setup
        self.grid = setup.grid
        self.batch_size = batch_size
        self.shared = shared
        self.heads = dict(zip(setup.model_locations, heads, strict=True))
        self.places = [place for place, tile in enumerate(self.grid.locations) if tile not in setup.blank_tiles]
        self.is_closed = threading.Event()
        self._windows = self._new_windows(feature_axes)
        check_graphs(shared, self.heads, setup, self._windows)
        self._cuts_tiles = self._windows is None or any("image" in head.inputs for head in heads)
        self._tile = np.zeros((batch_size, *self.grid.tile_size, 3), np.uint8)
        if self._windows:
            self._padded = np.zeros((batch_size, *self.grid.padded_size, 3), np.uint8)
        self._turn = _Turn()
        self._pid = os.getpid()

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The extractor's session, where there is one, then the heads'."""
        return (*([self.shared] if self.shared else []), *self.heads.values())

    @contextmanager
    def call(self) -> Iterator[None]:
        """What is run inside is one call: it waits for those of other threads.

        Raises:
            ForkedError: this is a forked child.
            InferenceError: this thread is in a call already.
        """
        # Before the turn is taken: at the fork, a thread that is not in the child may have had it
        if self.is_elsewhere:
            raise ForkedError(
                "this detector was loaded before the process was forked, and the engine's threads are not in the "
                "child; load the bundle there, or start processes by 'spawn'"
            )
        if self._turn.is_mine:
            raise InferenceError(
                "this thread is in a call of this detector already; a signal's handler cannot begin another one"
            )
        self._turn.take()
        try:
            try:
                yield
            finally:
                self._turn.leave()
        finally:
            if self.is_closed.is_set():  # meanwhile, by a signal's handler in this thread
                self.close()

    def check_images(self, images: NDArray[np.uint8]) -> None:
        """Raise `FrameError` unless ``images`` are uint8 (B, H, W, 3) of a size and a number that can be run."""
        if self.is_closed.is_set():
            raise DetectorClosedError("this detector is closed; load the bundle again")
        expected = (*self.grid.image_size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected or not 1 <= len(images) <= self.batch_size:
            raise FrameError(
                f"expected 1 to {self.batch_size} images uint8 of {expected}, but got {images.dtype} {images.shape}"
            )

    def tiles(
        self, images: NDArray[np.uint8], watch: Stopwatch
    ) -> Iterator[tuple[Location, NDArray[np.float32], NDArray[np.float32]]]:
        """Of every tile that is run, in grid order, location, scores (batch,) and maps (batch, h, w).

        Views of what the sessions hold, valid until the next tile; entries from ``len(images)`` on mean nothing. The
        scores are finite, the maps are for `check_finite` or `check_merged`.
        """
        features = None
        if self._windows:
            features = self._features_of(images)
            watch.lap("infer")
        for place in self.places:
            location = self.grid.locations[place]
            feeds: dict[str, Any] = {"image": self._cut(images, location)} if self._cuts_tiles else {}
            if self._windows and features:
                feeds |= self._windows.cut(features, location)
            watch.lap("tiles")
            scores, maps = self._infer(feeds, location)
            watch.lap("infer")
            self.check_finite(scores[: len(images)], location)
            yield location, scores, maps

    def whole(self, images: NDArray[np.uint8], watch: Stopwatch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores (B,) and maps (B, h, w) of the global model over the shrunk images: finite copies."""
        for small, image in zip(self._tile, images, strict=False):
            small[:] = resize(image, self.grid.tile_size)
        watch.lap("tiles")
        scores, maps = (values[: len(images)].copy() for values in self._infer({"image": self._tile}, WHOLE))
        watch.lap("infer")
        self.check_finite(scores, WHOLE)
        self.check_finite(maps, WHOLE)
        return scores, maps

    def check_finite(self, values: NDArray[np.float32], *tiles: Location) -> None:
        """Raise `NonFiniteOutputError` for the model of ``tiles`` unless ``values`` are finite numbers."""
        if not _are_finite(values):
            head = self.heads[self.setup.model_of(tiles[0])]
            names = " or ".join(tile.name for tile in tiles)
            raise NonFiniteOutputError(
                f"tile {names}: the model gave NaN or infinity on {head.device} in {head.precision}"
            )

    def check_merged(self, merged: NDArray[np.float32]) -> None:
        """`check_finite` of all tiles at once: of ``merged`` (B, H, W) every pixel once, however many tiles it has."""
        if not _are_finite(merged):
            image, row, col = np.argwhere(~np.isfinite(merged))[0]
            tiles = [tile for tile in self.grid.covering(row, col) if tile not in self.setup.blank_tiles]
            self.check_finite(merged[image, row, col], *tiles)

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a forked child, where the engine's threads are not."""
        return os.getpid() != self._pid

    def close(self) -> None:
        """Free the sessions, once the call in progress has ended: one of this thread does it itself. Idempotent.

        A call that does not come back in `CLOSE_TIMEOUT_S`, since the engine hangs, is left behind with its session.
        """
        self.is_closed.set()
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

    def _new_windows(self, axes: FeatureAxes) -> FeatureWindows | None:
        """Where the extractor sees the whole image. Raises `BundleError` where its outputs do not fit the tiles."""
        if self.shared is None or self.setup.extractor_scope is not ExtractorScope.IMAGE:
            return None
        try:
            return FeatureWindows(self.grid, self.shared.outputs, axes, self.batch_size)
        except GeometryError as error:
            raise BundleError(f"the shared graph: {error}") from error

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
        head = self.heads[self.setup.model_of(location)]
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

    def _cut(self, images: NDArray[np.uint8], location: Location) -> NDArray[np.uint8]:
        """The tile (batch_size, h, w, 3) at ``location``: zero where it reaches over the image's edge.

        In the runner's buffer, always: to feed an engine with other memory each time costs more than the copy.
        """
        rows, cols = self.grid.window(location)
        tile = images[:, rows, cols]  # slices end at the image's edge
        count, height, width, _ = tile.shape
        if (height, width) != self.grid.tile_size:
            self._tile.fill(0)
        self._tile[:count, :height, :width] = tile
        return self._tile


class _Turn:
    """Whose turn it is to use the sessions: one thread's at a time, which is known."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may come between it and the next line
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


def _are_finite(values: NDArray[np.float32]) -> bool:
    """Sums are finite where every term is, but for the largest numbers of float32: one pass instead of a mask."""
    return bool(np.isfinite(values.sum()) or np.isfinite(values).all())
