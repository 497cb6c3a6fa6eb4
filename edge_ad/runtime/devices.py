"""Device strings, and what there is to run on.

=====================  ============  ==================================================
string                 engine        meaning
=====================  ============  ==================================================
``CPU``                both          this machine's processor
``GPU``, ``GPU.1``     OpenVINO      the first, or the numbered, Intel GPU
``NPU``                OpenVINO      the neural processing unit
``AUTO``, ``AUTO:A,B`` OpenVINO      OpenVINO chooses, from all or from A and B
``HETERO:A,B``         OpenVINO      one graph over A and B, by what each supports
``MULTI:A,B``          OpenVINO      A and B take turns
``CUDA``, ``CUDA:1``   ONNX Runtime  the first, or the numbered, NVIDIA GPU
``TENSORRT``, ``:1``   ONNX Runtime  the same through TensorRT, where its libraries are installed
=====================  ============  ==================================================

Strings are taken as they are: upper case, no spaces. A bundle's format decides the engine. With ``AUTO`` the engine
begins on the device that it chose, but goes on with another one where that fails: name the device where failures are to
be raised.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec

from edge_ad.errors import DeviceNotFoundError, pip_install
from edge_ad.runtime.sessions import ENGINES, import_engine


@dataclass(frozen=True)
class DeviceInfo:
    """A device that an installed engine can run on.

    Attributes:
        name: the device string.
        full_name: as the maker calls it.
        engine: "OpenVINO" or "ONNX Runtime".
        precisions: what float parts can be executed in ("f32", "tf32", "bf16", "f16"), the device's default first.
    """

    name: str
    full_name: str
    engine: str
    precisions: tuple[str, ...]


def list_devices() -> list[DeviceInfo]:
    """Every device of every installed engine, OpenVINO's first.

    Raises:
        EngineMissingError: an engine is installed but cannot be loaded.
    """
    found: list[DeviceInfo] = []
    for graph_format, engine in ENGINES.items():
        if find_spec(engine.package):
            found += import_engine(graph_format).devices()
    return found


def split_device(device: str) -> tuple[str, tuple[str, ...]]:
    """The policy of a device string ("" where there is none) and the plain devices it names.

    >>> split_device("GPU.1"), split_device("AUTO"), split_device("HETERO:GPU,CPU")
    (('', ('GPU.1',)), ('AUTO', ()), ('HETERO', ('GPU', 'CPU')))
    """
    policy, colon, names = device.partition(":")
    if policy not in ("AUTO", "HETERO", "MULTI") or (policy != "AUTO" and not colon):
        return "", (device,)
    return policy, tuple(names.split(",")) if colon else ()


def listed_as(device: str, available: Collection[str]) -> str | None:
    """A plain device's name among those ``available``, or None.

    One GPU is listed as "GPU" and answers to "GPU.0"; of several, "GPU.0", "GPU.1", ..., "GPU" is the first.

    >>> listed_as("GPU.0", ["CPU", "GPU"]), listed_as("GPU", ["GPU.0", "GPU.1"]), listed_as("GPU.1", ["GPU"])
    ('GPU', 'GPU.0', None)
    """
    names = (device, f"{device}.0", "GPU" if device == "GPU.0" else device)
    return next((name for name in names if name in available), None)


def not_found(device: str, engine: str, available: Collection[str]) -> DeviceNotFoundError:
    """The error for a device that is not there; lists those that are."""
    message = f"device {device!r} is not one that {engine} finds here; found: {', '.join(available) or 'none'}"
    kind = device.partition(":")[0]
    if kind in available:
        message += "; there is none of this number"
    elif kind in ("CUDA", "TENSORRT"):
        if engine == "OpenVINO":
            message += "; NVIDIA devices run bundles of edge-ad export --format onnx"
        else:
            message += f"; {pip_install('cuda')}, after pip uninstall onnxruntime"
    elif engine != "OpenVINO" and device != "CPU":
        message += "; Intel devices run bundles of edge-ad export --format openvino"
    return DeviceNotFoundError(message)
