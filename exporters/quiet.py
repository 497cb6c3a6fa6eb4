"""Converters that say nothing: stdout belongs to the data."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

_LOCK = threading.RLock()


@contextlib.contextmanager
def quiet(logger_name: str) -> Iterator[None]:
    """What is called inside prints no progress, warns of nothing, and logs errors alone as ``logger_name``.

    Of the whole process, so one thread at a time.
    """
    with _LOCK:
        logger = logging.getLogger(logger_name)
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            logger.setLevel(level)
