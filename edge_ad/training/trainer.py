"""The ensemble trainer: any method, location by location, in the memory of one tile model."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_ad.bundle.manifest import Normalisation, NormalisationStage, ScoreMerge
from edge_ad.data.cache import CachedImages, digest_of, image_sizes, open_cache
from edge_ad.data.layouts import Dataset, Sample, read_dataset
from edge_ad.errors import (
    DataNotFoundError,
    DeviceNotFoundError,
    DivergedError,
    InputError,
    RunMismatchError,
    TooFewImagesError,
)
from edge_ad.evaluation.thresholds import DEFAULT_RULE, ThresholdRule
from edge_ad.imaging import PixelFormat
from edge_ad.methods.tile_model import ImageFeatures, TileModel, TileStream, location_seed
from edge_ad.progress import Progress, no_progress
from edge_ad.proportions import proportions_of
from edge_ad.roi import Roi
from edge_ad.setups import Setup
from edge_ad.tiling import Location
from edge_ad.training.calibration import fit_normalisation
from edge_ad.training.extractor import extractor_model, held_features
from edge_ad.training.run_detector import run_detector
from edge_ad.training.run_folder import SCHEMA_VERSION, DataSource, RunFolder, RunSettings

HELD_OUT_FRACTION = 0.15
MINIMUM_HELD_OUT = 2


@dataclass(frozen=True)
class TrainingImages:
    """Normal images at the setup's size, split in those heads are fitted on and those thresholds are fitted on.

    Both are uint8 (n, H, W, 3) RGB, painted over outside of ``roi``; mapped files, but for painted ones.
    """

    fit: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    source: DataSource
    roi: Roi | None = None


def hold_out(count: int, seed: int, fraction: float = HELD_OUT_FRACTION) -> tuple[list[int], list[int]]:
    """(fit, held_out) indices of ``count`` images: a seeded draw, each part ascending.

    >>> hold_out(6, seed=0)
    ([0, 1, 4, 5], [2, 3])

    Raises:
        TooFewImagesError: less than `MINIMUM_HELD_OUT` images would be left on either side.
        InputError: the fraction is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise InputError(f"--held-out: expected a fraction between 0 and 1, but got {fraction}")
    held = max(MINIMUM_HELD_OUT, math.floor(fraction * count + 0.5))
    if count - held < MINIMUM_HELD_OUT:
        raise TooFewImagesError(
            f"{count} normal training images are too few: at least {2 * MINIMUM_HELD_OUT} are needed, "
            f"{MINIMUM_HELD_OUT} to fit on and {MINIMUM_HELD_OUT} held out for the thresholds"
        )
    drawn = np.random.default_rng(seed).permutation(count)
    return sorted(drawn[held:].tolist()), sorted(drawn[:held].tolist())


def read_training_images(
    dataset: Dataset,
    setup: Setup,
    *,
    root: Path,
    layout: str,
    category: str | None,
    seed: int,
    held_out: float = HELD_OUT_FRACTION,
    pixel_format: PixelFormat = PixelFormat(),  # noqa: B008 - frozen
    roi: Roi | None = None,
    progress: Progress = no_progress,
) -> TrainingImages:
    """Decode the training part of ``dataset`` once, and split it.

    Args:
        dataset: its normal images are used: ``train``, and ``validation`` where the layout has some (MVTec LOCO), which
            are held out then, instead of a draw from ``train``.
        setup: of which images are decoded to the size.
        root, layout, category: where the data set is, for the run's record.
        seed, held_out: see `hold_out`.
        pixel_format: how files are read.
        roi: painted over outside of it.

    Raises:
        InputError, TooFewImagesError: see `hold_out`.
        EmptyDataError, UnreadableImageError, OutputWriteError: see `open_cache`.
    """

    def cached(samples: tuple[Sample, ...]) -> CachedImages:
        return open_cache(samples, setup.image_size, pixel_format, progress=progress)

    # A file per part: a part chosen from one array would be a copy in memory
    if dataset.validation:
        fit, held = cached(dataset.train), cached(dataset.validation)
        digests = fit.digests
    else:
        chosen, out = hold_out(len(dataset.train), seed, held_out)
        fit, held = (cached(tuple(dataset.train[index] for index in part)) for part in (chosen, out))
        by_index = zip((*chosen, *out), (*fit.digests, *held.digests), strict=True)
        digests = tuple(digest for _, digest in sorted(by_index))
    fit_images, held_images = fit.images, held.images
    source = DataSource(
        str(root.resolve()),
        layout,
        category,
        pixel_format,
        digest_of(digests),
        fit.digests,
        held.digests,
        hashlib.sha256(roi.png()).hexdigest() if roi else None,
        proportions_of(image_sizes([sample.path for sample in (*dataset.train, *dataset.validation)])),
    )
    if roi:
        fit_images, held_images = roi.paint(fit_images), roi.paint(held_images)
    return TrainingImages(fit_images, held_images, source, roi)


def run_images(run: RunFolder, calibration: Path | None = None, *, progress: Progress = no_progress) -> TrainingImages:
    """The images a run was trained on, or those of the folder ``calibration``, split as training splits them.

    Raises:
        RunMismatchError: the images are not those of the run.
        DataNotFoundError and others of `read_dataset`: they are gone; name a folder with ``calibration``.
    """
    settings, data = run.settings, run.settings.data
    root, layout, category = Path(data.root), data.layout, data.category
    if calibration is not None:
        root, layout, category = calibration, "folder", None
    try:
        dataset = read_dataset(root, layout, category)
    except DataNotFoundError as error:
        if calibration is not None:
            raise
        raise DataNotFoundError(
            f"{error}; the run was trained on it: put it back, or name --calibration DIR"
        ) from error
    images = read_training_images(
        dataset,
        settings.setup,
        root=root,
        layout=layout,
        category=category,
        seed=settings.seed,
        held_out=len(data.held_out) / (len(data.held_out) + len(data.training)),
        pixel_format=data.pixel_format,
        roi=run.roi(),
        progress=progress,
    )
    found = (images.source.training, images.source.held_out)
    if calibration is None and found != (data.training, data.held_out):
        raise RunMismatchError(
            f"the training images in {root} are not those the run was trained on; "
            "put them back, or name --calibration DIR"
        )
    return images


def open_device(name: str) -> torch.device:
    """The torch device ``name``: "cpu", "cuda", "cuda:1", in either case, as engines' are written in upper case.

    Raises:
        DeviceNotFoundError: there is none.
    """
    name = name.lower()
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name not in found and not (name == "cuda" and len(found) > 1):
        raise DeviceNotFoundError(f"torch finds no device {name!r}; it finds {', '.join(found)}")
    return torch.device(name)


@dataclass(frozen=True)
class EnsembleTrainer:
    """Fits every tile model of a run that is not there yet, one at a time.

    Args:
        run: where heads go; those already in it are kept.
        model: the method.
        images: what to fit on.
        batch_size: tiles per forward pass of the extractor.
        progress: told of every batch.
    """

    run: RunFolder
    model: TileModel
    images: TrainingImages
    batch_size: int = 16
    progress: Progress = no_progress

    def train(self) -> None:
        """Fit the missing heads, then the thresholds, on the model's device.

        A killed run continues at the location where it stopped.

        Raises:
            DivergedError: training of a tile model diverged; its last good state is stored in the run.
        """
        for location in self.run.missing():
            try:
                head = self.fit(location)
            except DivergedError as error:
                path = self.run.write_diverged(location, error.state)
                raise DivergedError(f"{error}; the last good state is in {path}", error.state) from error
            self.run.write_head(location, head, self.model.losses)
        if not self.run.has_normalisation:
            self.run.write_normalisation(self._normalisation())

    def fit(self, location: Location) -> nn.Module:
        """A head for the tile model of ``location``."""

        def tell(done: int, total: int, what: str) -> None:
            self.progress(done, total, f"{what} {location.name}")

        seed = location_seed(self.run.settings.seed, location)
        return self.model.fit(self._tiles(location), seed, tell)

    def _tiles(self, location: Location) -> TileStream:
        setup = self.run.settings.setup
        tiles = setup.tiles_of(location)
        total, done = len(self.images.fit) * len(tiles), 0

        def on_batch(count: int) -> None:
            nonlocal done
            done += count
            self.progress(done, total, f"fitting {location.name}")

        return TileStream(
            self.images.fit,
            setup.grid,
            tiles,
            self.model.extract,
            self.batch_size,
            on_batch,
            with_image=self.model.head_takes_image,
            image_features=self._image_features,
            feature_axes=self.model.feature_axes,
        )

    @cached_property
    def _image_features(self) -> ImageFeatures | None:
        """Held for all locations."""
        setup, model = self.run.settings.setup, self.model
        extract = extractor_model(model, setup).extract
        return held_features(setup, self.images.fit, extract, self.batch_size, model.device)

    def _normalisation(self) -> Normalisation:
        with run_detector(self.run, self.model) as detector:
            return fit_normalisation(
                detector,
                self.images.held_out,
                rule=self.run.settings.threshold_rule,
                stage=self.run.settings.normalisation_stage,
                progress=self.progress,
            )


def train(
    model: TileModel,
    setup: Setup,
    images: TrainingImages,
    output: Path,
    *,
    seed: int,
    score_merge: ScoreMerge = ScoreMerge.MAX,
    threshold_rule: str = DEFAULT_RULE,
    stage: NormalisationStage = NormalisationStage.IMAGE,
    progress: Progress = no_progress,
) -> RunFolder:
    """Train, or finish training, the run at ``output``.

    Raises:
        TooFewImagesError and others of `TileModel.check_counts`, `ThresholdRule` and `extractor_model`: before anything
            is written.
        RunMismatchError, OutputWriteError: see `RunFolder.begin`.
        DivergedError and others of `TileModel.fit`.
    """
    if images.roi is not None:
        setup = replace(setup, blank_tiles=images.roi.blank_tiles(setup.grid))
    for location in setup.model_locations:  # a global model has one tile per image, a shared one has many
        model.check_counts(len(images.fit), len(images.fit) * len(setup.tiles_of(location)))
    ThresholdRule.parse(threshold_rule).check_normal(len(images.held_out))
    extractor_model(model, setup)  # raises where its feature maps cannot be cut into tiles
    settings = RunSettings(
        schema_version=SCHEMA_VERSION,
        method=model.name,
        config=model.config,
        weights=model.weights_source,
        setup=setup,
        seed=seed,
        data=images.source,
        score_merge=score_merge,
        threshold_rule=threshold_rule,
        normalisation_stage=stage,
    )
    run = RunFolder.begin(output, settings, model, images.roi)
    EnsembleTrainer(run, model, images, progress=progress).train()
    return run
