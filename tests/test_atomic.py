import errno
import os
import re
import shutil
import signal
import stat
import sys
import time
import traceback
from pathlib import Path

import pytest

from edge_ad import atomic
from edge_ad.errors import MissingFileError, OutputExistsError, OutputWriteError


def full_disk(path):
    path.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "a.json"
    atomic.write_json(target, {"x": 1})
    with pytest.raises(OutputWriteError, match=r"cannot write .*a\.json: No space left on device; free some space"):
        atomic.write_file(target, full_disk)
    assert target.read_text() == '{\n  "x": 1\n}\n'
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputWriteError, match="cannot write"):
        atomic.write_text(tmp_path / "file" / "a.txt", "x")


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        atomic.write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_the_suffix_stays_so_that_image_writers_know_the_format(tmp_path):
    seen = []
    atomic.write_file(tmp_path / "a.png", lambda path: (seen.append(path.suffix), path.write_text("x")))
    assert seen == [".png"]


def test_a_staged_folder_appears_whole_or_not_at_all(tmp_path):
    with atomic.staged_folder(tmp_path / "out") as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "sub" / "a").read_text() == "1"

    def write_half() -> None:
        with atomic.staged_folder(tmp_path / "other") as stage:
            (stage / "a").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with (
        pytest.raises(OutputExistsError, match="exists; choose another -o, or pass --overwrite"),
        atomic.staged_folder(tmp_path / "out"),
    ):
        pass
    with pytest.raises(OutputWriteError), atomic.staged_folder(tmp_path / "out", replaces="old"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "out" / "old").exists()
    with atomic.staged_folder(tmp_path / "out", replaces="old") as stage:
        (stage / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    before = sorted(tmp_path.rglob("*"))
    for name, message in (("folder", "holds no old"), ("file", "is not a folder"), ("link", "is not a folder")):
        with pytest.raises(OutputExistsError, match=message), atomic.staged_folder(tmp_path / name, replaces="old"):
            pass
    with pytest.raises(OutputExistsError), atomic.staged_folder(tmp_path / "late", replaces="old"):
        (tmp_path / "late").write_text("mine")  # while the folder was being filled
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "late"])
    assert (tmp_path / "late").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    with atomic.staged_folder(tmp_path / "empty", replaces="old") as stage:
        (stage / "new").touch()
    assert (tmp_path / "empty" / "new").exists()


def in_child(work):
    """The exit status of a forked process that does ``work``: 0, 1 where it raised, or minus the signal that ended it.

    It never goes on with the tests of its parent, and is killed after 30 s.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - printed; the parent sees the status
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline_s = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline_s:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stage_and_die(path, *, with_exchange, when):
    """Replace ``path``, in a process that is killed at ``when``: before, between or after the renames."""
    if not with_exchange:
        atomic._exchange = lambda one, other: False
    rename, done = Path.rename, []

    def count(self, target):
        if len(done) == when:
            die()
        done.append(rename(self, target))

    Path.rename = count
    shutil.rmtree = lambda *args, **more: die()
    with atomic.staged_folder(path, replaces="old") as stage:
        (stage / "new").touch()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and exchanges folders in one step")
@pytest.mark.parametrize(
    ("with_exchange", "when", "found", "next_found"),
    [
        (True, 0, ["new"], ["new"]),  # killed when the old one is to be removed
        (False, 0, ["old"], ["old"]),
        (False, 1, None, ["old"]),  # between the renames: nothing is there until the next call puts it back
        (False, 2, ["new"], ["new"]),
    ],
)
def test_a_kill_while_a_folder_is_replaced(tmp_path, with_exchange, when, found, next_found):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    killed = in_child(lambda: stage_and_die(out, with_exchange=with_exchange, when=when))
    assert killed == -signal.SIGKILL
    assert (sorted(path.name for path in out.iterdir()) if out.exists() else None) == found
    with pytest.raises(OutputExistsError), atomic.staged_folder(out):
        pass
    assert [path.name for path in out.iterdir()] == next_found
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing is left of it


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_kill_inside_leaves_nothing_after_the_next_call(tmp_path):
    def stage_half():
        with atomic.staged_folder(tmp_path / "out") as stage:
            (stage / "half").touch()
            die()

    assert in_child(stage_half) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with atomic.staged_folder(tmp_path / "out") as stage:
        (stage / "whole").touch()
        with atomic.staged_folder(tmp_path / "out") as other:  # another of the same name, at the same time
            (other / "first").touch()
            assert stage.exists()
        with pytest.raises(OutputExistsError), atomic.staged_folder(tmp_path / "out"):
            pass
        shutil.rmtree(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_left_of_a_longer_name_is_not_ours(tmp_path):
    """Of bolt.edgead, once killed between the renames: it is put back by its own next call alone."""
    theirs = [".bolt.edgead.a1b2c3_d.old", ".bolt.edgead.a1b2c3_d.part", ".bolt.edgead.old"]
    for name in (*theirs, ".bolt.a1b2c3_d.old", ".bolt.b1b2c3_d.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of").write_text(name)
    with pytest.raises(OutputExistsError), atomic.staged_folder(tmp_path / "bolt"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*theirs, "bolt"])
    assert (tmp_path / "bolt" / "of").read_text() == ".bolt.a1b2c3_d.old"
    with pytest.raises(OutputExistsError), atomic.staged_folder(tmp_path / "bolt.edgead"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bolt.edgead.old", "bolt", "bolt.edgead"]


def test_what_is_being_written_is_no_leftover(tmp_path):
    """By this process or any other, in this container or another one of the same folder: whoever writes has a lock."""
    (tmp_path / "sub").mkdir()
    others = [".hidden.part.json", "0123abcd.part.json", ".0123abcd.part.tar.gz", ".0123abcx.part"]
    for name in (*others, ".0123abcd.part.json", "sub/.01234567.part"):
        (tmp_path / name).touch()

    def write(temporary):
        temporary.with_suffix(".new").write_text("new")
        temporary.with_suffix(".new").replace(temporary)  # as safetensors does it
        atomic.remove_leftovers(tmp_path)
        assert temporary.read_text() == "new"
        assert not (tmp_path / ".0123abcd.part.json").exists()  # in a folder where nobody writes

    atomic.write_file(tmp_path / "sub" / "a.json", write)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted([*others, ".01234567.part", "a.json"])
    atomic.remove_leftovers(tmp_path)
    assert not (tmp_path / "sub" / ".01234567.part").exists()


def test_a_stage_is_written_into_by_others_too(tmp_path):
    """A writer's lock and the stage's own are not in each other's way; nor are those of two writers."""
    with atomic.staged_folder(tmp_path / "out") as stage:
        atomic.write_file(stage / "a", lambda part: (atomic.write_text(stage / "b", "b"), part.write_text("a")))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_kill_while_a_file_is_written_leaves_what_is_recognised(tmp_path):
    killed = in_child(lambda: atomic.write_file(tmp_path / "a.json", lambda path: (path.touch(), die())))
    assert killed == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    atomic.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_as_long_as_names_go(tmp_path):
    longest = tmp_path / ("n" * 251 + ".png")
    atomic.write_text(longest, "x")
    assert list(tmp_path.iterdir()) == [longest]


def test_errors_of_what_is_read_inside_come_through(tmp_path):
    """Some of ours are an OSError too: they are no failure to write."""
    with pytest.raises(MissingFileError), atomic.staged_folder(tmp_path / "out"):
        raise MissingFileError("gone")


def test_what_is_flushed(tmp_path, monkeypatch):
    """Files, then the folders that name them, up to the first that was there before."""
    flushed = []
    flush = atomic._flush
    monkeypatch.setattr(atomic, "_flush", lambda path: flushed.append(path) or flush(path))
    atomic.write_text(tmp_path / "a" / "b" / "c.txt", "x")
    names = [path.relative_to(tmp_path).as_posix() for path in flushed]
    temporary = names.pop(2)
    assert re.fullmatch(r"a/b/\.[0-9a-f]{8}\.part\.txt", temporary)
    assert names == ["a", ".", "a/b"]
    flushed.clear()
    atomic.write_bytes(tmp_path / "a" / "b" / "d.png", b"x", durable=False)
    assert flushed == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("refused", ["folders", "files"])
def test_a_filesystem_that_flushes_files_alone(tmp_path, monkeypatch, code, refused):
    """Some network filesystems, and FUSE; an error of the disk counts whatever it is about."""
    fsync = os.fsync

    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode) == (refused == "folders"):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)

    def write_both():
        atomic.write_text(tmp_path / "a" / "b.txt", "x")
        with atomic.staged_folder(tmp_path / "out") as stage:
            (stage / "c").mkdir()
            (stage / "c" / "d").write_text("x")

    if refused == "files" or code == errno.EIO:
        with pytest.raises(OutputWriteError, match=os.strerror(code)):
            write_both()
    else:
        write_both()
        assert {path.name for path in tmp_path.rglob("*")} == {"a", "b.txt", "out", "c", "d"}
