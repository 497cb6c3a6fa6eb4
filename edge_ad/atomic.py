"""Files and folders that are whole or not there: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edge_ad.errors import OutputExistsError, OutputWriteError


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary)`` and rename the result to ``path``, replacing what was there.

    Raises:
        OutputWriteError: nothing could be written (disk full, no permission); ``path`` is as it was.
    """
    path = Path(path)
    # The suffix stays at the end: cv2.imwrite and others choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with suppress(OSError):  # where nothing could be written there is nothing to remove
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically. Raises `OutputWriteError`."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content``, atomically. Raises `OutputWriteError`."""
    write_file(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def staged_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling folder that becomes ``path`` when the block ends without an error.

    Raises:
        OutputExistsError: ``path`` exists and ``overwrite`` is False.
        OutputWriteError: the folder could not be written; ``path`` is as it was.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists; choose another -o, or pass --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        yield stage
        for file in stage.rglob("*"):
            _flush(file)
        stage.chmod(0o755)  # mkdtemp makes it private
        if path.exists():
            old = stage.with_suffix(".old")
            path.rename(old)
            stage.rename(path)
            shutil.rmtree(old)
        else:
            stage.rename(path)
        _flush(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _flush(path: Path) -> None:
    flags = os.O_RDONLY
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders; NTFS journals the rename
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_error(path: Path, error: OSError) -> OutputWriteError:
    return OutputWriteError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder")
