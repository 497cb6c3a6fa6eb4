"""From a bundle's folder to a detector: what is checked, and in which order its graphs are opened."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from edge_ad import atomic
from edge_ad.bundle.files import check_unchanged, read_bundle, read_entry
from edge_ad.bundle.graph_reader import GraphReader
from edge_ad.bundle.manifest import Graph, Manifest
from edge_ad.errors import ManifestError, OutputWriteError, UnsupportedPrecisionError
from edge_ad.imaging import decode_image
from edge_ad.records import from_plain
from edge_ad.roi import Roi
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.processor import usable_cpus
from edge_ad.runtime.residency import open_in_turns, open_together, parse_bytes, turn_takers
from edge_ad.runtime.session import ExecutionPrecision, Session
from edge_ad.runtime.sessions import open_session
from edge_ad.runtime.verify import verify_bundle

COMPILED_AT_ONCE = 4  # heads: engines compile a graph on one core, mostly, and each takes memory for it
_LOGGER = logging.getLogger(__name__)


def load(
    bundle: str | Path,
    device: str = "CPU",
    *,
    precision: ExecutionPrecision | str = ExecutionPrecision.AUTO,
    batch_size: int = 1,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    require_signature: str | Path | None = None,
    self_test: bool = False,
    memory_budget: int | str | None = None,
) -> Detector:
    """Open a bundle on a device. Every file is checked against the manifest first.

    Args:
        bundle: the bundle's folder.
        device: ``"CPU"``, ``"GPU"``, ``"CUDA:1"`` and others, see `edge_ad.runtime.devices`.
        precision: the float parts are executed in. ``"auto"``: the device's default, where that is no slower than f32
            (`edge_ad.runtime.processor`), but f32 for the graphs whose numbers bear no less (`Graph.keep_f32`), unless
            the device has none, which is logged. Anything else holds for every graph.
        batch_size: images per call of `Detector.raw`. One frame at a time, as calls and streams take them, costs as
            much as a whole batch: leave it at 1 for those.
        threads: of inference on the CPU. Where None OpenVINO's choice; in ONNX Runtime one per CPU that the process may
            use.
        cache_dir: where OpenVINO and TensorRT keep compiled graphs, so that the next start is quick. What lies there
            runs unchecked: let nobody write to it who may not write to this program. While it is read or written here,
            OpenVINO sets the locale of the whole process to "C": other threads that open text files should say how
            they are encoded.
        require_signature: file of the Ed25519 public key (PEM) by which the bundle must be signed (``edge-ad sign``);
            that of the environment's EDGE_AD_REQUIRE_SIGNATURE where None, so that a line requires it once for all.
        self_test: run the golden images first, and compare their scores with the exporter's: see `verify_bundle`.
        memory_budget: bytes, or a size such as ``"300MB"``, for extractor and heads: heads that do not fit are read
            from a file in ``cache_dir``, else in the system's folder for temporary files, or opened from the bundle's
            folder, which must stay, when their turn comes; see `edge_ad.runtime.residency`. All stay loaded where None.

    Raises:
        BundleError: the bundle is not whole or was changed; or not signed as required; see `read_bundle` for its kinds.
        SigningKeyError, ExtraMissingError: the signature cannot be checked.
        EngineMissingError, DeviceNotFoundError, DeviceFallbackError, UnsupportedPrecisionError: cannot run here.
        InputError: an argument is out of range.
        InferenceError: the engine cannot read or compile a graph.
        VerificationError: the device computes something else than the exporter's, or there is no golden image.
        OutputWriteError: no room for the heads that a memory budget keeps aside.
    """
    found = read_bundle(bundle, check_hashes=False, require_signature=require_signature)
    check_unchanged(found.path, [golden.file for golden in found.manifest.golden])  # others: where they are read
    detector = open_detector(
        found.path,
        found.manifest,
        device,
        precision=from_plain(ExecutionPrecision, precision, "precision"),
        batch_size=batch_size,
        threads=threads,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        memory_budget=memory_budget,
    )
    detector.manifest_digest = found.manifest_digest
    if self_test:
        try:
            verify_bundle(detector, found)
        except BaseException:
            detector.close()
            raise
    return detector


def open_detector(
    path: Path,
    manifest: Manifest,
    device: str = "CPU",
    *,
    precision: ExecutionPrecision = ExecutionPrecision.AUTO,
    batch_size: int = 1,
    threads: int | None = None,
    cache_dir: Path | None = None,
    memory_budget: int | str | None = None,
) -> Detector:
    """`load` without the checks of the bundle as a whole: ``manifest``'s graphs as they lie in the folder ``path``.

    A graph is read into memory, compared with its hash and compiled from there; the next one is read meanwhile, and on
    a CPU several are compiled at once, but not under a memory budget.

    Args:
        manifest: that of ``path``, or the same with other thresholds or another merge.
        device, precision, batch_size, threads, cache_dir, memory_budget: see `load`.

    Raises:
        MissingFileError, ChangedFileError, GraphFormatError, BundleError: of the graphs; see `read_graph`.
        EngineMissingError, DeviceNotFoundError, UnsupportedPrecisionError, InferenceError, InputError: see `load`.
        OutputWriteError: ``memory_budget`` is to keep heads in a folder that cannot be written.
    """
    roi = read_roi(path, manifest)
    cache_dir = _usable(cache_dir, is_needed=memory_budget is not None)
    reader = GraphReader(path, manifest, ahead=memory_budget is None)
    without_f32: dict[str, str] = {}

    def session(graph: Graph, like: Session | None = None, aside: bool = False) -> Session:
        opened = partial(
            open_session,
            reader.read(graph),
            manifest.format,
            device,
            batch_size=batch_size,
            threads=threads,
            cache_dir=cache_dir,
            like=like,
            aside=aside,
        )
        if not graph.keep_f32 or precision is not ExecutionPrecision.AUTO:
            return opened(precision=precision)
        try:
            return opened(precision=ExecutionPrecision.F32)
        except UnsupportedPrecisionError:  # an NPU has none
            found = opened(precision=precision)
            without_f32.setdefault(found.device, found.precision)
            return found

    first: Session | None = None

    def head_session(graph: Graph, aside: bool) -> Session:
        nonlocal first
        opened = session(graph, first, aside)
        first = first or opened
        return opened

    takers = [] if memory_budget is None else turn_takers(manifest.shared, manifest.heads, parse_bytes(memory_budget))
    with closing(reader), ExitStack() as opened:  # closes what was opened where a later graph cannot be
        shared = session(manifest.shared) if manifest.shared else None
        if shared:
            opened.callback(shared.close)
        openers = [partial(head_session, graph) for graph in manifest.heads]
        if device == "CPU" and memory_budget is None:
            heads = open_together(openers, min(COMPILED_AT_ONCE, threads or usable_cpus()))
        else:
            heads = open_in_turns(openers, takers)
        for head in heads:
            opened.callback(head.close)
        detector = Detector(manifest, shared, heads, batch_size=batch_size, roi=roi)
        opened.pop_all()
    for name, instead in without_f32.items():
        _LOGGER.warning("%s has no f32 for graphs that rank best in it; they execute in %s", name, instead)
    return detector


def _usable(cache_dir: Path | None, *, is_needed: bool) -> Path | None:
    """The folder where something can be written there; None where not, which is logged.

    Raises:
        OutputWriteError: nothing can, and the folder is needed.
    """
    if cache_dir is None or (reason := _unwritable(cache_dir)) is None:
        return cache_dir
    if is_needed:
        raise OutputWriteError(f"{cache_dir}: nothing can be written there ({reason}); heads are to be kept there")
    _LOGGER.warning("%s: nothing can be written there (%s); compiled graphs are not kept", cache_dir, reason)
    return None


def _unwritable(folder: Path) -> str | None:
    """Why no file can be made in ``folder``, which is made where it is missing; None where one can."""
    try:
        atomic.try_folder(folder)
    except OSError as error:
        return error.strerror or str(error)
    return None


def read_roi(path: Path, manifest: Manifest) -> Roi | None:
    """The region of interest of the bundle in the folder ``path``, where it has one.

    Raises:
        MissingFileError, ChangedFileError: the file is not the one that ``manifest`` names.
        UnreadableImageError, InputError: see `Roi.read`.
        ManifestError: tiles that the region shows are called blank: no defect would be seen there.
    """
    roi = None
    if manifest.roi is not None:
        file = path / manifest.roi.path
        image = decode_image(read_entry(path, manifest.roi).tobytes(), file)
        roi = Roi.drawn(image, file, manifest.setup.image_size)
    blank = roi.blank_tiles(manifest.setup.grid) if roi else ()
    if wrong := [tile for tile in manifest.setup.blank_tiles if tile not in blank]:
        raise ManifestError(f"manifest.json.setup.blank_tiles: {wrong} are to be looked at; export the bundle again")
    return roi
