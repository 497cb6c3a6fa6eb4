"""Files and folders that are whole or not there: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edge_ad.errors import EdgeAdError, OutputExistsError, OutputWriteError

_HAS_LOCKS = os.name != "nt"
if sys.platform != "win32":
    import fcntl

_STAGE, _OLD = ".part", ".old"  # of a file or folder on its way in, and of a folder on its way out
_PART = re.compile(rf"\.[0-9a-f]{{8}}{re.escape(_STAGE)}(\.[^.]*)?")  # a temporary file
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux: fcntl.h, linux/fs.h


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block, which writes ``path``, into `OutputWriteError`."""
    try:
        yield
    except EdgeAdError:  # some are an OSError too, of something that was read
        raise
    except OSError as error:
        raise OutputWriteError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error


def write_file(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Call ``write(temporary)`` and rename the result to ``path``, replacing what was there.

    Args:
        path: the file; folders that are missing above it are made.
        write: writes the file whose path it is given.
        durable: wait until the disk has it. Without, a power cut may leave an empty file; a kill may not.

    Raises:
        OutputWriteError: nothing could be written (disk full, no permission); ``path`` is as it was. Or it
            was renamed already, and only whether it will outlast a power cut is in doubt.
    """
    path = Path(path)
    with writing(path):
        make_folder(path.parent)
        # The suffix stays at the end: cv2.imwrite and others choose the format by it. A stem may be as long as names go
        temporary = path.with_name(f".{secrets.token_hex(4)}{_STAGE}{path.suffix}")
        with _locked(path.parent, shared=True):  # not the file itself: some writers replace it
            try:
                write(temporary)
                if durable:
                    _flush(temporary)
                temporary.replace(path)
                if durable:
                    _flush(path.parent)
            finally:
                with suppress(OSError):  # where nothing could be written there is nothing to remove
                    temporary.unlink()


def check_writable(path: Path) -> None:
    """Raise `OutputWriteError` where no file ``path`` can be written, before the work that it is to tell of is done.

    Folders that are missing above it are made, as by `write_file`.
    """
    path = Path(path)
    with writing(path):
        try_folder(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically. Raises `OutputWriteError`."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write ``content``, atomically; ``durable``: see `write_file`. Raises `OutputWriteError`."""
    write_file(path, lambda temporary: temporary.write_bytes(content), durable=durable)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def staged_folder(path: Path, *, replaces: str | None = None) -> Iterator[Path]:
    """A temporary sibling folder that becomes ``path`` when the block ends without an error.

    An existing folder changes places with it in one step, where the filesystem can (Linux: ext4, xfs, btrfs, tmpfs):
    whoever reads finds the old one or the new one, whole, and so does who reads after a power cut. Elsewhere there are
    two steps, with no folder for an instant; one that was interrupted there is put back by the next call.

    What a killed process left beside ``path`` is removed first; where there are locks (Linux, macOS), for elsewhere
    nothing tells it from what a running one writes.

    Args:
        path: the folder.
        replaces: a folder that holds a file of this name is replaced, and an empty one; nothing is where None.

    Raises:
        OutputExistsError: ``path`` exists and may not be replaced.
        OutputWriteError: the folder could not be written; ``path`` is as it was. Or it was renamed already, and only
            whether it will outlast a power cut is in doubt.
    """
    path = Path(path)
    with writing(path):
        make_folder(path.parent)
        with _locked(path.parent):
            _recover(path)
            _check_replaceable(path, replaces)
            stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_STAGE, dir=path.parent))
            lock = _lock(stage, shared=True)  # files are written into it
    try:
        with writing(path):
            yield stage
            for file in stage.rglob("*"):
                _flush(file)
            stage.chmod(0o755)  # mkdtemp makes it private
            _flush(stage)
            _check_replaceable(path, replaces)  # it may have come meanwhile
            if not path.exists():
                stage.rename(path)
            elif not _exchange(stage, path):
                old = stage.with_suffix(_OLD)
                path.rename(old)
                stage.rename(path)
                shutil.rmtree(old, ignore_errors=True)
            _flush(path.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed `write_file` has left anywhere below ``folder``, where there are locks (Linux, macOS).

    Not from folders in which anybody writes at the moment: what is there stays until the next time.
    """
    for file in Path(folder).rglob(f".*{_STAGE}*"):
        if _PART.fullmatch(file.name) and file.is_file():
            with suppress(OSError), _try_lock(file.parent) as is_free:  # what cannot be removed does no harm
                if is_free:
                    file.unlink(missing_ok=True)


def try_folder(path: Path) -> None:
    """Make ``path`` where it is missing, and a file in it that is gone again. `OSError` where that fails."""
    make_folder(path)
    with tempfile.TemporaryFile(dir=path):
        pass


def make_folder(path: Path) -> None:
    """Make ``path`` and what is missing above it, and wait until that is on disk. `OSError` where that fails."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _flush(folder.parent)


def _check_replaceable(path: Path, replaces: str | None) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if replaces is None:
        raise OutputExistsError(f"{path} exists; choose another -o, or pass --overwrite")
    if path.is_symlink() or not path.is_dir():
        raise OutputExistsError(f"{path} exists and is not a folder; choose another -o")
    if any(path.iterdir()) and not (path / replaces).is_file():
        raise OutputExistsError(f"{path} is not empty and holds no {replaces}; choose another -o")


def _recover(path: Path) -> None:
    """Finish or undo what a killed `staged_folder` of ``path`` has left; those of running ones are locked."""
    # One random part, as `tempfile` makes it: those of "bolt.edgead" are not "bolt"'s
    mine = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}({re.escape(_STAGE)}|{re.escape(_OLD)})")
    for leftover in sorted(each for each in path.parent.iterdir() if mine.fullmatch(each.name)):
        if leftover.suffix == _OLD and not path.exists():
            leftover.rename(path)
        elif leftover.suffix == _OLD:
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with _try_lock(leftover) as is_free:
                if is_free:
                    shutil.rmtree(leftover, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step; False where the system or the filesystem cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one))


def _lock(folder: Path, *, shared: bool = False) -> int | None:
    """A handle that keeps ``folder`` locked until it is closed or its process ends; None where that cannot be.

    Several may have a ``shared`` one at a time, while nobody has one that is not.
    """
    if not _HAS_LOCKS:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # it may be written to, but not read
        return None
    with suppress(OSError):  # some network filesystems have none
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    return handle


@contextmanager
def _locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """See `_lock`."""
    handle = _lock(folder, shared=shared)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Whether nobody had locked the folder ``path``, which is locked now; False where that cannot be known."""
    if not _HAS_LOCKS:
        yield False
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows cannot open folders; NTFS journals the rename
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what may be written
    try:
        os.fsync(handle)
    except OSError as error:
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some filesystems flush files alone
            raise
    finally:
        os.close(handle)
