"""Every error this package raises on purpose, and the exit code each one means.

Four families, one per exit code of the command line:

====  ======================  ====================================================
code  family                  meaning
====  ======================  ====================================================
1     `EdgeAdError`           the run failed (disk full, non-finite numbers, ...)
2     `InputError`            usage or bad input: the remedy is in the message
3     `GateError`             everything ran, but a gate was not met
4     `UnavailableError`      the device, engine or extra asked for is not there
====  ======================  ====================================================

Each error also is the built-in a caller would catch (`FileNotFoundError`, `ValueError`, ...). Messages state what was
found, where, and what to do; the command line prints them as they are, on one line.
"""

from __future__ import annotations

from typing import Any


def pip_install(extra: str) -> str:
    """What messages tell to do where an extra of setup.cfg is missing.

    Never `pip install edge-ad`: nothing is published by that name, and whoever publishes something would be installed.

    >>> pip_install("openvino")
    "pip install '.[openvino]' in a checkout of edge-ad"
    """
    return f"pip install '.[{extra}]' in a checkout of edge-ad"


class EdgeAdError(Exception):
    """Base of all errors raised on purpose. The run failed; exit code 1."""

    exit_code = 1


class InputError(EdgeAdError, ValueError):
    """Usage or bad input; exit code 2."""

    exit_code = 2


class GateError(EdgeAdError):
    """A gate (parity, accuracy drop, verification, ...) was not met; exit code 3."""

    exit_code = 3


class UnavailableError(EdgeAdError, RuntimeError):
    """A device, engine or optional dependency asked for is not available; exit code 4."""

    exit_code = 4


# --- geometry ---------------------------------------------------------------------------------------------------------


class GeometryError(InputError):
    """Image size, tile size and stride do not make a grid."""


class StrideTooLargeError(GeometryError):
    """The stride exceeds the tile: pixels between tiles would never be seen."""


class TileTooLargeError(GeometryError):
    """The image is smaller than one tile."""


# --- data -------------------------------------------------------------------------------------------------------------


class DataNotFoundError(InputError, FileNotFoundError):
    """A data folder or file named by the user does not exist."""


class EmptyDataError(InputError):
    """A data folder holds no image."""


class NoNormalImagesError(InputError):
    """The layout was recognised, but its training part has no normal image."""


class LayoutError(InputError):
    """A folder does not have the structure of the layout asked for."""


class UnreadableImageError(InputError):
    """A file is empty, truncated, or not an image at all."""


class ImageTooLargeError(UnreadableImageError):
    """An image claims more pixels than are decoded; its header was read, nothing else."""


class MixedSizesError(InputError):
    """Images differ in size where one common size was asked for (``--image-size native``)."""


class MaskSizeError(InputError):
    """A ground-truth mask and its image differ in size."""


class MaskWithoutImageError(InputError):
    """A ground-truth mask belongs to no test image."""


class MissingMaskError(InputError):
    """Some defective test images of a set with masks have none."""


class DefectsConfigError(InputError):
    """A ``defects_config.json`` cannot be read, says what cannot be meant, or does not fit its masks."""


class PixelFormatError(InputError):
    """Rank, dtype, channels or bit depth of a decoded image are not what was declared."""


class UndefinedMetricError(InputError):
    """A metric needs both normal and anomalous examples."""


class TooFewImagesError(InputError):
    """Fewer images than the method, the held-out split or a statistic needs."""


# --- weights and training ---------------------------------------------------------------------------------------------


class BackboneError(InputError):
    """A backbone is unknown, or lacks the layers asked for."""


class WeightsNotFoundError(InputError, FileNotFoundError):
    """Pretrained weights could not be found or downloaded."""


class WrongWeightsError(InputError):
    """Weights of another architecture: names or shapes do not match."""


class NonFiniteWeightsError(InputError):
    """Weights hold NaN or infinity."""


class NonFiniteValuesError(EdgeAdError):
    """Features, maps or scores became NaN or infinite."""


class BatchTooLargeError(InputError):
    """A training batch is larger than the set of training tiles."""


class CoresetSizeError(InputError):
    """A memory bank is to hold more vectors than there are, or none."""


class DivergedError(EdgeAdError):
    """Training reached a loss that is NaN or infinite.

    Attributes:
        state: ``state_dict()`` of the head before the last update, whose loss was finite.
    """

    def __init__(self, message: str, state: dict[str, Any]) -> None:
        super().__init__(message)
        self.state = state


class RunMismatchError(InputError):
    """A run folder was made with other settings than those asked for now."""


class IncompleteRunError(InputError):
    """A run folder lacks the tile models of some locations, or is not a run folder."""


class OutputExistsError(InputError, FileExistsError):
    """The output path exists and would be overwritten."""


class OutputWriteError(EdgeAdError, OSError):
    """An output could not be written (disk full, no permission); nothing half-written is left behind."""


# --- experiments ------------------------------------------------------------------------------------------------------


class ConfigError(InputError):
    """An experiment's configuration cannot be read, or says what cannot be meant."""


class ResultsError(InputError):
    """The results in an experiment's folder are damaged, or were made with other settings."""


# --- bundle -----------------------------------------------------------------------------------------------------------


class BundleError(InputError):
    """A bundle cannot be trusted or understood."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """The path is not a bundle: no folder, or no manifest.json in it."""


class UnknownSchemaError(BundleError):
    """The manifest has a schema_version this release does not read."""


class ManifestError(BundleError):
    """The manifest is not valid JSON, or a field is missing, unknown or of the wrong type."""


class MissingFileError(BundleError, FileNotFoundError):
    """A file named in the manifest is not there."""


class ChangedFileError(BundleError):
    """A file's size or SHA-256 differs from the manifest."""


class ExtraFileError(BundleError):
    """The folder holds a file the manifest does not name."""


class LinkedFileError(BundleError):
    """A file of the bundle is a symbolic link."""


class EscapingPathError(BundleError):
    """A path in the manifest leaves the bundle folder."""


class GraphFormatError(BundleError):
    """A graph file is not the IR or ONNX it should be, or refers to other files."""


class UnsignedBundleError(BundleError):
    """A signature is required, and the bundle has none."""


class WrongSignatureError(BundleError):
    """The bundle's signature was not made with the key required, or the manifest was changed since."""


class SigningKeyError(InputError):
    """A file is not an Ed25519 key in PEM format, or not the half of the pair that is needed."""


# --- export -----------------------------------------------------------------------------------------------------------


class ParityError(GateError):
    """The exported graphs do not reproduce the trained model within tolerance."""


class AccuracyDropError(GateError):
    """The exported model loses more accuracy than ``--accuracy-drop`` allows."""


class VerificationError(GateError):
    """The golden images do not give their expected scores on this device."""


# --- runtime ----------------------------------------------------------------------------------------------------------


class FrameError(InputError):
    """A frame has the wrong rank, dtype or number of channels for its declared colour, or not its declared bits."""


class FrameChangedError(FrameError):
    """A frame differs in size, dtype or channels from the first one of its stream."""


class ColorError(InputError):
    """The declared colour order is not one of those known."""


class DeviceNotFoundError(UnavailableError):
    """The device asked for is unknown or not present; the message lists those found."""


class DeviceFallbackError(UnavailableError):
    """The engine silently chose another device than the one asked for."""


class EngineMissingError(UnavailableError, ImportError):
    """The inference engine a bundle needs is not installed."""


class ExtraMissingError(UnavailableError, ImportError):
    """An optional part of edge-ad is not installed; see `pip_install`."""


class UnsupportedPrecisionError(UnavailableError):
    """The device cannot execute in the precision asked for."""


class InferenceError(EdgeAdError, RuntimeError):
    """The engine failed while running, or produced NaN or infinity."""


class NonFiniteOutputError(InferenceError, NonFiniteValuesError):
    """A model gave NaN or infinity: there is no verdict on this frame."""


class DetectorClosedError(InferenceError):
    """The detector was closed, or closes while it is in use."""


class ForkedError(InferenceError):
    """The process was forked after the engine had started: its threads are not in the child."""


class SourceError(InputError):
    """An image, video or camera source cannot be opened, or was lost."""


class NoFrameError(SourceError):
    """A source gave None in place of a frame."""


class StalledError(EdgeAdError, TimeoutError):
    """A stream gave no result for as long as its policy allows."""
