"""Do a bundle's graphs fit together? Names, shapes and dtypes of what they give and take."""

from __future__ import annotations

from collections.abc import Mapping

from edge_ad.errors import BundleError
from edge_ad.runtime.feature_windows import FeatureWindows
from edge_ad.runtime.session import Session, TensorSpec
from edge_ad.setups import Setup
from edge_ad.tiling import Location

Tensors = dict[str, tuple[tuple[int, ...], str]]  # name: (shape without the batch axis, dtype)


def check_graphs(
    shared: Session | None, heads: Mapping[Location, Session], setup: Setup, windows: FeatureWindows | None
) -> None:
    """Raise `BundleError` unless the graphs fit together and the tiles. Batch axes are the sessions' own matter."""
    given: Tensors = {"image": ((*setup.tile_size, 3), "uint8")}
    wanted: Tensors = {"anomaly_map": ((1, *setup.tile_size), "float32"), "pred_score": ((), "float32")}
    if shared:
        _check_tensors("the shared graph", "input", shared.inputs, {"image": ((*setup.extractor_size, 3), "uint8")})
        if not shared.inputs:
            raise BundleError("the shared graph: no input image")
        shapes = windows.shapes if windows else {name: spec.shape[1:] for name, spec in shared.outputs.items()}
        given |= {name: (shapes[name], spec.dtype) for name, spec in shared.outputs.items()}
    for location, head in heads.items():
        _check_tensors(f"head {location.name}", "input", head.inputs, given)
        if not head.inputs:  # one map for every image
            raise BundleError(f"head {location.name}: no input; expected some of {', '.join(given)}")
        _check_tensors(f"head {location.name}", "output", head.outputs, wanted)
        if missing := wanted.keys() - head.outputs.keys():
            raise BundleError(f"head {location.name}: no output {', '.join(sorted(missing))}")


def _check_tensors(graph: str, kind: str, specs: Mapping[str, TensorSpec], known: Tensors) -> None:
    for name, spec in specs.items():
        if name not in known:
            raise BundleError(f"{graph}: unknown {kind} {name}; expected some of {', '.join(known)}")
        if (spec.shape[1:], spec.dtype) != known[name]:
            shape, dtype = known[name]
            raise BundleError(
                f"{graph}: expected {kind} {name} as {dtype} (batch, *{shape}), but got {spec.dtype} {spec.shape}"
            )
