"""INT8 post-training quantisation with NNCF: of the shared extractor, and of heads that are networks themselves.

Distances, normalisation and maps lose their ranking in eight bits and stay in float. Heads that hold nothing else are
refitted on the quantised extractor's features, so that both sides of a distance carry the same rounding; of others the
convolutions are quantised (`edge_ad.methods.tile_model.HeadInt8`). So do the convolutions that eight bits hurt
(`edge_ad.exporters.sensitive`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Format
from edge_ad.exporters.quiet import quiet
from edge_ad.exporters.sensitive import copying_convolutions, sensitive_convolutions
from edge_ad.methods.tile_model import TileStream
from edge_ad.runtime.telemetry import no_telemetry

CALIBRATION_TILES = 300  # NNCF's own default
HEAD_CALIBRATION_TILES = 100  # they are held with their features, 2 MB each at 256 px

# What distances, normalisations and merges of maps are made of, in the names of OpenVINO and of ONNX. Sums of maps are
# written as reductions: Add must stay out of the list, or the residuals of a student would leave int8.
MEASURING = (
    *("Multiply", "Subtract", "Divide", "Power", "Maximum", "Minimum"),
    *("Mul", "Sub", "Div", "Pow", "Max", "Min"),
    *("MatMul", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "Sqrt", "Log", "Exp"),
)

# Copies numbers: quantised as an operation of its own it would round them once more. In the names of both formats.
RESAMPLING = ("Interpolate", "Resize")

Model = TypeVar("Model")  # openvino.Model or onnx.ModelProto
Feeds = Mapping[str, NDArray[Any]]  # one sample: input name to array with a batch axis of 1


def calibration_tiles(stream: TileStream, count: int = CALIBRATION_TILES) -> NDArray[np.uint8]:
    """Up to ``count`` tiles (n, h, w, 3), drawn evenly over all images and locations of ``stream``."""
    return stream.cut(_spread(stream, count))


def head_feeds(stream: TileStream, names: Sequence[str], count: int = HEAD_CALIBRATION_TILES) -> list[Feeds]:
    """What a head with inputs ``names`` is fed for up to ``count`` tiles of ``stream``."""
    inputs = [value.numpy() for value in stream.head_inputs(_spread(stream, count))]
    return [
        {name: value[index : index + 1] for name, value in zip(names, inputs, strict=True)}
        for index in range(len(inputs[0]))
    ]


def _spread(stream: TileStream, count: int) -> list[int]:
    numbers: list[int] = np.unique(np.linspace(0, len(stream) - 1, min(count, len(stream))).astype(int)).tolist()
    return numbers


def quantise(model: Model, feeds: Sequence[Feeds], graph_format: Format) -> Model:
    """An extractor with int8 convolutions but for sensitive ones.

    Weights have a scale per channel, activations one per tensor; both are symmetric. Biases are corrected by running
    the quantised graph in OpenVINO, from layer statistics in ONNX; the former keeps more of the ranking.

    Args:
        model: openvino.Model or onnx.ModelProto.
        feeds: calibration samples.
        graph_format: of ``model``.
    """
    # NNCF's ONNX backend cannot cut every graph as the exact correction needs
    return _quantise(model, feeds, sensitive_convolutions(model, graph_format), (), graph_format is Format.ONNX)


def quantise_head(model: Model, feeds: Sequence[Feeds], graph_format: Format) -> Model:
    """As `quantise`, but operations that measure (`MEASURING`), and convolutions that copy channels, stay in float.

    A copy in eight bits would round what was rounded before. Biases are corrected from layer statistics alone.
    """
    keep = sensitive_convolutions(model, graph_format) + copying_convolutions(model, graph_format)
    return _quantise(model, feeds, keep, MEASURING, True)


def _quantise(
    model: Model, feeds: Sequence[Feeds], names: Sequence[str], types: Sequence[str], fast_correction: bool
) -> Model:
    """``model`` but for the operations of these names, of these types, and `RESAMPLING`."""
    with no_telemetry():
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    with quiet("nncf"):
        quantised: Model = nncf.quantize(
            model,
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            fast_bias_correction=fast_correction,
            ignored_scope=nncf.IgnoredScope(names=list(names), types=[*RESAMPLING, *types], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # To the extremes of all calibration tiles. NNCF's own ranges end at the mean of every tile's extremes
                # and cut off what lies beyond: what is unlike the rest, which is what a detector looks for
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )
    return quantised
