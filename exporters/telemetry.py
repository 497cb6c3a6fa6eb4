"""No usage statistics from here: OpenVINO's converter and NNCF send some unless they run in a CI job, so they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_telemetry() -> Iterator[None]:
    """What is converted or imported inside sends nothing. The environment is as before afterwards."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
