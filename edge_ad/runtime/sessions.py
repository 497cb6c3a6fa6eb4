"""Which engine runs which graph format. Engines are imported here, when first needed, and nowhere else."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.bundle.manifest import Format
from edge_ad.errors import EngineMissingError, InputError, pip_install
from edge_ad.runtime.session import ExecutionPrecision, Session


class Engine(NamedTuple):
    """An inference engine: its package (also the name of our extra) and the module here that wraps it."""

    package: str
    module: str


ENGINES = {
    Format.OPENVINO: Engine("openvino", "edge_ad.runtime.openvino_session"),
    Format.ONNX: Engine("onnxruntime", "edge_ad.runtime.onnxruntime_session"),
}


def import_engine(graph_format: Format) -> ModuleType:
    """The session module of a format: ``open_graph``, ``devices()``.

    Raises:
        EngineMissingError: its engine is not installed, or does not load.
    """
    package, module = ENGINES[graph_format]
    try:
        return import_module(module)
    except ImportError as error:
        raise EngineMissingError(
            f"{graph_format} graphs need {package}, which cannot be imported ({error}); {pip_install(package)}"
        ) from error


def open_session(
    graph: GraphFiles | Path,
    graph_format: Format,
    device: str = "CPU",
    *,
    precision: ExecutionPrecision = ExecutionPrecision.AUTO,
    batch_size: int = 1,
    threads: int | None = None,
    cache_dir: Path | None = None,
    like: Session | None = None,
    aside: bool = False,
) -> Session:
    """One graph, compiled for one device and one batch size.

    Args:
        graph: its bytes, or the file (.xml or .onnx) of a graph that belongs to no bundle.
        graph_format: decides the engine.
        device: see `edge_ad.runtime.devices`.
        precision: of the float parts; the device's default where ``auto``.
        batch_size: fixed when compiled.
        threads: of inference on the CPU. Where None OpenVINO's choice; in ONNX Runtime one per CPU that the process may
            use.
        cache_dir: where OpenVINO, on any device, and TensorRT keep compiled graphs, so that the next start is quick.
            What lies there runs unchecked: let nobody write to it who may not write to this program.
        like: a session of a graph that may differ from this one in constants alone, such as another head: where they
            can share a compiled graph, they do.
        aside: keep constants in a file without a name in ``cache_dir`` (else the system's folder for temporary files)
            instead of memory, where the graph is one that can be shared: see `Session.aside`.

    Raises:
        EngineMissingError: the format's engine is not installed.
        DeviceNotFoundError, DeviceFallbackError: the device is not there; the message lists those found.
        UnsupportedPrecisionError: the device does not execute in ``precision``.
        GraphFormatError: the graph is of another format, or needs other files.
        InputError: an argument is out of range, or the engine has no such thing.
        InferenceError: the graph could not be read or compiled.
        OutputWriteError: no room for what is to be kept aside.
    """
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{name}: expected at least 1, but got {value}")
    engine = import_engine(graph_format)
    files = graph if isinstance(graph, GraphFiles) else GraphFiles.read(Path(graph), graph_format)
    session: Session = engine.open_graph(
        files,
        device,
        precision=precision,
        batch_size=batch_size,
        threads=threads,
        cache_dir=cache_dir,
        like=like,
        aside=aside,
    )
    return session
