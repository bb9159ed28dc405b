"""Tests of locks: on file systems that have none, and of processes that are killed."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

import kdkit
from kdkit.errors import RunFolderError
from kdkit.utils.locks import FileLock
from tests.helpers.command_line import ROOT


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


FORKS = """
import os, sys
from kdkit.utils.locks import FileLock

lock = FileLock(sys.argv[1])
lock.acquire()
if os.fork() == 0:
    print("forked", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork processes")
def test_a_forked_process_does_not_keep_a_lock_of_its_parent(tmp_path):
    """Otherwise a run that was killed could not be resumed until its workers have ended."""
    command = [sys.executable, "-c", FORKS, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout.readline() == b"forked\n"
        parent.kill()
        parent.wait()
        FileLock(tmp_path / "lock").acquire(timeout=0)  # its child still reads
