"""The run folder: what training writes, and all that evaluation and export read.

::

    RUN/run.json                           settings, data, seed, versions: written first
    RUN/roi.png                            where to look, where it is not everywhere
    RUN/extractor.safetensors              the frozen part, stored once
    RUN/tile_models/r00_c00.safetensors    one head per tile model, written as soon as it is fitted
    RUN/losses/r00_c00.json                what its training saw of its loss, where it was trained step by step
    RUN/diverged/r00_c00.safetensors       last good state of a head whose training diverged; nothing reads it back
    RUN/normalisation.json                 thresholds and scales, written last: a run with it is complete

Every file is written atomically, so a run that was killed continues where it stopped. A run continues only with the
settings it was begun with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edge_ad import atomic
from edge_ad.bundle.files import ROI_NAME, sha256_file
from edge_ad.bundle.manifest import Normalisation, NormalisationStage, ScoreMerge
from edge_ad.errors import IncompleteRunError, RunMismatchError, WrongWeightsError
from edge_ad.imaging import PixelFormat
from edge_ad.methods import create_model
from edge_ad.methods.gradient import GradientModel
from edge_ad.methods.parts.photographs import listing_digest
from edge_ad.methods.parts.weights import fill
from edge_ad.methods.tile_model import Losses, TileModel
from edge_ad.proportions import Proportions
from edge_ad.records import from_plain, to_plain
from edge_ad.roi import Roi
from edge_ad.setups import Setup
from edge_ad.tiling import Location

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class DataSource:
    """Where the images come from, and which ones they were."""

    root: str
    layout: str
    category: str | None
    pixel_format: PixelFormat
    digest: str  # over the decoded training images' file digests
    training: tuple[str, ...]  # file digests of the images the heads are fitted on
    held_out: tuple[str, ...]  # file digests of the normal images thresholds are fitted on
    roi: str | None = None  # digest of the run's roi.png
    proportions: Proportions | None = None  # of the images; None: an earlier release did not say


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run computes."""

    schema_version: int
    method: str
    config: dict[str, Any]
    weights: str  # source of the extractor's weights
    setup: Setup
    seed: int
    data: DataSource
    score_merge: ScoreMerge
    threshold_rule: str
    normalisation_stage: NormalisationStage
    photographs: str | None = None  # digest of those for a penalty; None: there were none, or an earlier release


@dataclass(frozen=True)
class RunFolder:
    """A run folder whose settings are known to be those on disk."""

    path: Path
    settings: RunSettings

    @classmethod
    def begin(cls, path: Path, settings: RunSettings, model: TileModel, roi: Roi | None = None) -> RunFolder:
        """Start a run, or continue one that was begun with the same settings.

        Args:
            model: the method; continuing a run with random weights (``"none"``), its extractor takes those of the run.
                Which photographs it is given, if any, becomes one of the settings.
            roi: of which ``settings.data`` has the digest.

        Raises:
            RunMismatchError: ``path`` holds a run with other settings or weights, or files of something else.
            OutputWriteError: the folder cannot be written.
        """
        path = Path(path)
        settings = replace(settings, photographs=_photographs(model))
        if (path / "run.json").exists():
            run = cls.open(path)
            atomic.remove_leftovers(path)
            if found := differences(to_plain(_completed(run.settings, settings)), to_plain(settings)):
                raise RunMismatchError(
                    f"{path} was made with other settings ({'; '.join(found)}); "
                    "choose another -o, or repeat the settings to continue it"
                )
            run._take_up(model)
            return run
        if path.exists() and any(path.iterdir()):
            raise RunMismatchError(f"{path} is not empty and not a run folder; choose another -o")
        if roi is not None:
            atomic.write_bytes(path / ROI_NAME, roi.png())
        atomic.write_json(path / "run.json", to_plain(settings))
        run = cls(path, settings)
        run._take_up(model)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run. Raises `IncompleteRunError` where there is none, or run.json is damaged."""
        path = Path(path)
        if not (path / "run.json").is_file():
            raise IncompleteRunError(f"{path} is not a run folder: no run.json; make one with edge-ad train")
        value = _read_json(path / "run.json", "train again, into another folder")
        return cls(path, from_plain(RunSettings, value, f"{path}/run.json", IncompleteRunError))

    def roi(self) -> Roi | None:
        """Where to look. Raises `IncompleteRunError` where roi.png is missing or not the run's."""
        wanted = self.settings.data.roi
        if wanted is None:
            return None
        path = self.path / ROI_NAME
        if not path.is_file() or sha256_file(path) != wanted:
            raise IncompleteRunError(f"{path} is missing or another one; train again, into another folder")
        return Roi.read(path, self.settings.setup.image_size)

    def head_path(self, location: Location) -> Path:
        """File of one tile model's head."""
        return self.path / "tile_models" / f"{location.name}.safetensors"

    def missing(self) -> tuple[Location, ...]:
        """Tile models still to be trained."""
        return tuple(loc for loc in self.settings.setup.model_locations if not self.head_path(loc).exists())

    @property
    def has_normalisation(self) -> bool:
        """Whether thresholds have been fitted."""
        return (self.path / "normalisation.json").exists()

    def write_head(self, location: Location, head: nn.Module, losses: Sequence[Losses] = ()) -> None:
        """Store one fitted head, after the losses of its training: a head that is there has them too."""
        if losses:
            atomic.write_json(self._losses_path(location), to_plain(losses))
        save_tensors(self.head_path(location), head.state_dict())

    def losses(self, location: Location) -> tuple[Losses, ...]:
        """Of the stages of one tile model's training. Raises `IncompleteRunError` where the file is damaged."""
        path = self._losses_path(location)
        if not path.exists():
            return ()
        value = _read_json(path, "delete it; the model does not need it")
        found: tuple[Losses, ...] = from_plain(tuple[Losses, ...], value, str(path), IncompleteRunError)
        return found

    def _losses_path(self, location: Location) -> Path:
        return self.path / "losses" / f"{location.name}.json"

    def write_diverged(self, location: Location, state: Mapping[str, Tensor]) -> Path:
        """Store the last good state of a head whose training diverged, apart from the fitted ones. Returns its file."""
        path = self.path / "diverged" / f"{location.name}.safetensors"
        save_tensors(path, state)
        return path

    def write_normalisation(self, normalisation: Normalisation) -> None:
        """Store thresholds and scales; the run is complete with them."""
        atomic.write_json(self.path / "normalisation.json", to_plain(normalisation))

    def normalisation(self) -> Normalisation:
        """Raises `IncompleteRunError` where training has not finished, or normalisation.json is damaged."""
        path = self.path / "normalisation.json"
        if not path.exists() or self.missing():
            names = ", ".join(location.name for location in self.missing()) or "thresholds"
            raise IncompleteRunError(f"{self.path} is incomplete ({names} missing); run the same edge-ad train again")
        normalisation: Normalisation = from_plain(
            Normalisation,
            _read_json(path, "delete it and run the same edge-ad train again"),
            str(path),
            IncompleteRunError,
        )
        return normalisation

    def model(self) -> TileModel:
        """The method with the run's own extractor weights: nothing is downloaded."""
        settings = self.settings
        model = create_model(settings.method, settings.setup.tile_size, weights="none", **settings.config)
        fill(model.extractor, load_tensors(self.path / "extractor.safetensors"), "extractor.safetensors")
        model.weights_source = settings.weights
        return model

    def head(self, model: TileModel, location: Location) -> nn.Module:
        """The fitted head of one tile model. Raises `WrongWeightsError` where the file holds another method's."""
        path = self.head_path(location)
        state = load_tensors(path)
        try:
            return model.head_from_state(state)
        except (KeyError, RuntimeError) as error:  # torch reports names and shapes as RuntimeError, on many lines
            reason = " ".join(str(error).split())
            raise WrongWeightsError(
                f"{path} is no head of {model.name} for these tiles: {reason}; "
                "delete it and run the same edge-ad train again"
            ) from error

    def _take_up(self, model: TileModel) -> None:
        """Store the extractor of ``model``, or see that it is the one the fitted heads belong to."""
        path = self.path / "extractor.safetensors"
        own = {key: value.cpu() for key, value in model.extractor.state_dict().items()}
        if not path.exists() and len(self.missing()) == len(self.settings.setup.model_locations):
            save_tensors(path, own)
            return
        stored = load_tensors(path)
        same = stored.keys() == own.keys() and all(torch.equal(stored[key], value) for key, value in own.items())
        if not same and self.settings.weights != "none":
            raise RunMismatchError(
                f"{self.path} was begun with other weights than this {self.settings.weights}; "
                "choose another -o, or give the same weights to continue it"
            )
        fill(model.extractor, stored, str(path))


def _photographs(model: TileModel) -> str | None:
    given = model.photographs if isinstance(model, GradientModel) else None
    return listing_digest(given.folder, given.files) if given else None


def _completed(there: RunSettings, here: RunSettings) -> RunSettings:
    """``there`` with what an earlier release did not write taken from ``here``: unknown is not different."""
    data = replace(there.data, proportions=there.data.proportions or here.data.proportions)
    return replace(there, data=data, photographs=there.photographs or here.photographs)


def save_tensors(path: Path, state: Mapping[str, Tensor], remarks: Mapping[str, str] | None = None) -> None:
    """Write tensors, and remarks on them, as safetensors, atomically. Raises `OutputWriteError`."""
    contiguous = {key: value.contiguous() for key, value in state.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(contiguous, temporary, dict(remarks) if remarks else None)
        except SafetensorError as error:  # safetensors wraps a full disk in its own error
            raise OSError(str(error)) from error

    atomic.write_file(path, write)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a run, memory-mapped. Raises `IncompleteRunError` or `WrongWeightsError`."""
    if not path.is_file():
        raise IncompleteRunError(f"{path} is missing; run the same edge-ad train again")
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise WrongWeightsError(
            f"{path} is damaged: {error}; delete it and run the same edge-ad train again"
        ) from error
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WrongWeightsError(f"{path}: {key!r} holds NaN or infinity; delete it and run edge-ad train again")
    return state


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also text that is not UTF-8
        raise IncompleteRunError(f"{path} is damaged: {error}; {remedy}") from error


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two settings as JSON has them, a text each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [text for key in keys for text in differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))]
    if old == new:
        return []
    if isinstance(old, list) and len(str(old)) > 100:
        return [f"{where} differs"]
    return [f"{where}: {old!r} there, {new!r} here"]
