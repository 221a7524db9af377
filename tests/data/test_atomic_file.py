"""Files are written atomically, and temporary files are removed."""

import hashlib
import os
import stat

import pytest

from hf_reward.data.atomic_file import atomic_writer, create_exclusive, remove_temporaries, replacing, write_atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "one")
    path.chmod(0o640)
    write_atomic(path, "two \ud800")
    assert path.read_text() == r"two \ud800"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("writer", [replacing, atomic_writer])
def test_a_failure_keeps_only_the_earlier_file(writer, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("one")

    def fail():
        with writer(path) as target:
            target.write_text("half") if writer is replacing else target.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "one"
    assert names(tmp_path) == ["a.json"]


def test_an_atomic_writer_reports_hash_and_size(tmp_path):
    with atomic_writer(tmp_path / "a.bin") as file:
        assert (file.write(b"abc"), file.write(b"de"), file.tell()) == (3, 2, 5)
        assert (file.readable(), file.writable(), file.seekable(), file.closed) == (False, True, False, False)
    assert (file.size, file.sha256) == (5, hashlib.sha256(b"abcde").hexdigest())
    assert file.write(b"torn down") == 9, "later bytes are discarded"
    assert (tmp_path / "a.bin").read_bytes() == b"abcde"


@pytest.mark.parametrize("keep_empty", [True, False])
def test_an_empty_file_is_written_only_with_keep_empty(keep_empty, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"earlier")
    with atomic_writer(path, keep_empty=keep_empty):
        pass
    assert names(tmp_path) == (["a.bin"] if keep_empty else [])


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_created_once(links, tmp_path, monkeypatch):
    if not links:

        def refuse(*_):
            raise PermissionError(1, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.json"
    assert create_exclusive(path, b"first")
    if links:
        assert not create_exclusive(path, b"second")
    else:
        with pytest.raises(PermissionError):
            create_exclusive(path, b"second")
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["a.json"]


def test_temporary_files_of_killed_writers_are_removed_by_name(tmp_path):
    for name in (".a.json.0123abcd.tmp", ".b.json.0123abcd.tmp", ".a.json.tmp", "a.json"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path, {"a.json"})
    assert names(tmp_path) == [".a.json.tmp", ".b.json.0123abcd.tmp", "a.json"]
    remove_temporaries(tmp_path / "nowhere", {"a.json"})
