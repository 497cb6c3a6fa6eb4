"""Engines that report nothing: what imports one does it inside `no_telemetry`, a test sees to that.

OpenVINO sends an event to its makers when it is imported, and more when it converts. It forks the process for it, which
is a camera program with threads: the child runs that program's handlers, and a later choice of how processes start is
refused. Where its package for that is missing it sends nothing. ONNX Runtime keeps a database of events in the user's
home, and sends them, unless the environment says otherwise when it is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_SENDER = "openvino_telemetry"
_LOCK = RLock()


@contextmanager
def no_telemetry() -> Iterator[None]:
    """OpenVINO, NNCF and ONNX Runtime, imported inside for the first time, report nothing while this process lives.

    What the program itself has imported before stays as it is. Afterwards the program may import OpenVINO's sender.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with _LOCK:
        if _SENDER in sys.modules:
            yield
            return
        sys.modules[_SENDER] = None  # type: ignore[assignment] # an ImportError for who imports it
        try:
            yield
        finally:
            sys.modules.pop(_SENDER, None)
