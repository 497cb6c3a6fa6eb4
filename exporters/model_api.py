"""One tile as a model of its own for Intel's ModelAPI: extractor, head and thresholds in a single IR with its metadata.

A bundle stores the extractor once, so none of its graphs leads from an image to a verdict, and ModelAPI opens none of
them. Extractor and one head, merged, do. Such a file holds a backbone: it is written beside bundles, never in one.

Source: `AnomalyDetection` of open-edge-platform/model_api 0.4. It takes results as they are where a graph has the four
outputs below, and reads its settings from ``rt_info/model_info``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_ad import atomic
from edge_ad.bundle.files import Bundle
from edge_ad.bundle.manifest import Format, NormalisationStage, Scale, ScoreMerge
from edge_ad.errors import InputError, OutputExistsError
from edge_ad.exporters import ir_file
from edge_ad.runtime.telemetry import no_telemetry
from edge_ad.setups import ExtractorScope
from edge_ad.tiling import Location

with no_telemetry():
    import openvino as ov
    from openvino import opset13 as ops

MODEL_INFO = {
    "model_type": "AnomalyDetection",
    "task": "segmentation",
    "labels": "Normal Anomaly",
    # The graph's own outputs are scaled: 0.5 at the threshold
    "image_threshold": "0.5",
    "pixel_threshold": "0.5",
    "normalization_scale": "1.0",
    # ModelAPI hands over OpenCV's BGR, resized to the tile; mean and scale are inside the graph
    "reverse_input_channels": "True",
    "resize_type": "standard",
}


def write_tile(bundle: Bundle, tile: str | None, path: Path) -> Path:
    """Write a tile as ``path``, to which .xml is appended where it does not end so, and .bin beside it.

    Args:
        bundle: of OpenVINO graphs.
        tile: its name, such as "r00_c01"; None: the only one.
        path: of the file to open.

    Input: ``image`` float32 NHWC RGB in [0, 255], the type ModelAPI converts to. Outputs: ``anomaly_map`` (N, 1, h, w)
    and ``pred_score`` (N,) float32 in [0, 1] with 0.5 at the threshold, ``pred_label`` (N,) and ``pred_mask``
    (N, 1, h, w) boolean. What floats are executed in is the program's to choose: where heads keep f32
    (`Graph.keep_f32`) it has to ask for INFERENCE_PRECISION_HINT=f32, which this file does not carry.

    Raises:
        InputError: not an OpenVINO bundle, no such tile, or its thresholds hold for merged values only.
        OutputExistsError, OutputWriteError: a file is there already, or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".xml":
        path = path.with_name(f"{path.name}.xml")  # not with_suffix: a name may hold dots
    for file in (path, path.with_suffix(".bin")):
        if file.exists():
            raise OutputExistsError(f"{file} exists; choose another file")
    location = _location(bundle, tile)
    score, map_scale = _scales(bundle, location)
    model = _merged(bundle, location, score, map_scale)
    for key, value in MODEL_INFO.items():
        model.set_rt_info(value, ["model_info", key])

    def write(temporary: Path) -> None:
        constants = temporary.with_suffix(".bin")
        try:
            ir_file.save(model, temporary, half=False)  # constants keep the bundle's own precision
            constants.replace(path.with_suffix(".bin"))
        finally:
            constants.unlink(missing_ok=True)

    atomic.write_file(path, write)
    return path


def _location(bundle: Bundle, tile: str | None) -> Location:
    locations = bundle.manifest.setup.grid.locations
    by_name = {location.name: location for location in locations}
    names = ", ".join(by_name)
    if tile is None and len(by_name) > 1:
        raise InputError(f"{bundle.path} has {len(by_name)} tiles; choose one of {names}")
    if tile is not None and tile not in by_name:
        raise InputError(f"{bundle.path} has no tile {tile}; it has {names}")
    return locations[0] if tile is None else by_name[tile]


def _scales(bundle: Bundle, location: Location) -> tuple[Scale, Scale]:
    """Scales of one tile's score and map: its own, and then those that the bundle has for what is merged.

    Where scores are merged by their maximum, the image is anomalous where one tile is. By their mean none is judged
    alone, and a tile's score has the tile's own threshold.
    """
    manifest, locations = bundle.manifest, bundle.manifest.setup.grid.locations
    if manifest.format is not Format.OPENVINO:
        raise InputError(f"{bundle.path} is an {manifest.format} bundle; ModelAPI needs one of --format openvino")
    if manifest.setup.extractor_scope is ExtractorScope.IMAGE and len(locations) > 1:
        raise InputError(f"the extractor of {bundle.path} sees whole images; train with --extractor-scope tile")
    if manifest.roi is not None:
        raise InputError(f"{bundle.path} looks at a region of interest, which no graph knows; train without --roi")
    norm = manifest.normalisation
    if norm.stage is NormalisationStage.TILE:
        score, map_scale = (scales[locations.index(location)] for scales in (norm.tile_score, norm.tile_map))
        if norm.fusion is not None:  # the merged scales are those of tiles and global model together
            return score, map_scale
        is_judged_alone = len(locations) == 1 or manifest.merge.score is ScoreMerge.MAX
        return _composed(score, norm.score) if is_judged_alone else score, _composed(map_scale, norm.map)
    if len(locations) > 1:
        raise InputError(
            f"the thresholds of {bundle.path} were fitted on {len(locations)} merged tiles and say nothing of one; "
            "train with --normalise tile"
        )
    return norm.score, norm.map


def _composed(first: Scale, then: Scale) -> Scale:
    """One scale in place of ``first`` and, of what that gives, ``then``; values are clipped once, at the end."""
    span = 2 * (first.threshold - first.low)  # of raw values, for 1 of what ``first`` gives
    return Scale(first.low + span * then.low, first.low + span * then.threshold)


def _merged(bundle: Bundle, location: Location, score: Scale, map_scale: Scale) -> ov.Model:
    manifest, core = bundle.manifest, ov.Core()
    model_location = manifest.setup.model_of(location)
    (head_graph,) = (graph for graph in manifest.heads if graph.location == tuple(model_location))
    height, width = manifest.setup.tile_size
    image = ops.parameter([-1, height, width, 3], np.float32, name="image")
    image.output(0).get_tensor().set_names({"image"})
    image.set_layout(ov.Layout("NHWC"))
    known = {"image": ops.convert(ops.round(image, "half_to_even"), "u8").output(0)}
    for graph in (manifest.shared, head_graph):
        if graph is None:
            continue
        part = core.read_model(bundle.file(graph.files[0]))
        for port in part.inputs:
            for target in port.get_target_inputs():
                target.replace_source_output(known[port.any_name])
        known |= {port.any_name: port.node.input_value(0) for port in part.outputs}
    scaled_score = _scaled(known["pred_score"], score)
    scaled_map = _scaled(known["anomaly_map"], map_scale)
    outputs = {
        "pred_score": scaled_score,
        "anomaly_map": scaled_map,
        "pred_label": ops.greater_equal(scaled_score, np.float32(0.5)),
        "pred_mask": ops.greater_equal(scaled_map, np.float32(0.5)),
    }
    results = []
    for name, node in outputs.items():
        node.output(0).get_tensor().set_names({name})
        results.append(ops.result(node))
    return ov.Model(results, [image], f"{manifest.method.name} {location.name}")


def _scaled(values: ov.Output, scale: Scale) -> ov.Node:
    """`edge_ad.runtime.normalisation.normalise` as a graph."""
    shifted = ops.subtract(values, np.float32(scale.low))
    return ops.clamp(ops.multiply(shifted, np.float32(0.5 / (scale.threshold - scale.low))), 0.0, 1.0)
