"""Tests of locks on file systems that have none."""

import errno
from pathlib import Path

import filelock
import pytest

import kdkit
from kdkit.errors import RunFolderError
from kdkit.utils.locks import FileLock


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("FileSystem does not appear to support flock"),  # of filelock 3.13
        OSError(errno.EOPNOTSUPP, "Operation not supported"),
        OSError(errno.ENOLCK, "No locks available"),
    ],
)
def test_a_file_system_without_locks_is_named_as_the_reason(error, tmp_path, monkeypatch):
    def acquire(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(OSError, match="its file system has no locks"), FileLock(tmp_path / "lock"):
        pass
    with pytest.raises(RunFolderError, match=r"its file system has no locks, .* mount this one with locks"):
        [*kdkit.Study(tmp_path / "study", []).run()]


def test_the_lock_of_a_study_stays_in_its_folder_although_filelock_deletes_it_on_windows(tmp_path, monkeypatch):
    release = filelock.FileLock.release

    def delete(self, *args, **options):
        if self.is_locked:
            release(self, *args, **options)
            Path(self.lock_file).unlink()

    monkeypatch.setattr(filelock.FileLock, "release", delete)
    [*kdkit.Study(tmp_path / "study", []).run()]
    assert [file.name for file in (tmp_path / "study").iterdir()] == [".lock"]


def test_a_lock_that_another_one_holds_is_a_timeout(tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(filelock.Timeout):
        FileLock(tmp_path / "lock").acquire(timeout=0)
