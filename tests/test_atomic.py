import errno

import pytest

from edge_ad import atomic
from edge_ad.errors import OutputExistsError, OutputWriteError


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
    with pytest.raises(OutputWriteError), atomic.staged_folder(tmp_path / "out", overwrite=True):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "out" / "old").exists()
    with atomic.staged_folder(tmp_path / "out", overwrite=True) as stage:
        (stage / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
