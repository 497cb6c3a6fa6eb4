"""OpenVINO IR on disk: numbers with a point, whatever the program's language, and a full disk as an `OSError`."""

from __future__ import annotations

import locale
from pathlib import Path

from edge_ad.runtime.telemetry import no_telemetry

with no_telemetry():
    import openvino as ov


def save(model: ov.Model, path: Path, *, half: bool) -> None:
    """Write ``path`` (.xml), and the .bin beside it.

    Args:
        model: the graph.
        path: of the file to open.
        half: store float constants in half precision, as `openvino.save_model` would do unless told otherwise.

    Raises:
        OSError: OpenVINO cannot write, which it tells in words of its own.
    """
    before = locale.setlocale(locale.LC_NUMERIC)
    locale.setlocale(locale.LC_NUMERIC, "C")  # a desktop program sets its user's: "1,75" would be read as 1
    try:
        ov.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:
        raise OSError(f"OpenVINO could not write {path.name}: {error}") from error
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)
