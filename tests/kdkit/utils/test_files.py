"""Tests of atomic writes and of values as JSON; writes that are interrupted are tested with the run folder."""

import json
import math
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kdkit.cli.new import recipe
from kdkit.engine.storage.run_folder import can_resume, read_record, was_killed_at_start
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.errors import KdkitError
from kdkit.nets.weights.folders import find_weights, runs_in
from kdkit.report import write_card
from kdkit.teachers.cache import CacheFolder
from kdkit.utils import files
from kdkit.utils.files import (
    append,
    delete,
    delete_temporary_files,
    exists,
    is_file,
    nulls_to_nan,
    require_output,
    require_output_folder,
    to_json,
    write,
)
from kdkit.utils.signing import sign
from tests.helpers.command_line import environment


def test_numbers_that_are_not_finite_are_null_in_json_and_nan_when_read():
    text = to_json({"a": math.nan, "b": [1.5, math.inf], "c": ("x", None)})
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": ["x", None]}
    values = nulls_to_nan(json.loads(text))
    assert math.isnan(values["a"])
    assert values["b"][0] == 1.5
    assert math.isnan(values["b"][1])
    assert values["c"][0] == "x"


# What exists


UNREACHABLE = Path("x" * 5000)  # the name is too long, an error that root gets too


@pytest.mark.parametrize(
    "ask",
    [
        *(exists, is_file, can_resume, was_killed_at_start, read_record, runs_in),
        *(lambda path: find_weights(path, "student", None), lambda path: StageFolder(path).finished),
        *(lambda path: StageFolder(path)._checkpoints(), lambda path: CacheFolder(path).kept()),
        *(lambda path: require_output(path / "file"), lambda path: require_output_folder(path / "folder")),
    ],
)
def test_a_path_that_cannot_be_examined_does_not_count_as_missing(ask, monkeypatch):
    for name in ("exists", "is_file", "is_dir"):  # as from Python 3.14 on
        monkeypatch.setattr(Path, name, getattr(os.path, name.replace("_", "")))
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises((OSError, KdkitError), match="File name too long"):
        ask(UNREACHABLE)


def test_files_that_cannot_be_examined_are_not_overwritten(tmp_path, monkeypatch):
    # A link to itself, for which `Path.exists` returns False in every version of Python.
    for name in ("kdkit/key", "card.md", "recipe.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert sign("text") is None
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without a home folder
    assert sign("text") is None
    for write_file in (
        lambda: write_card(tmp_path, tmp_path / "card.md"),
        lambda: recipe.callback("digits", tmp_path / "recipe.py"),
    ):
        with pytest.raises((OSError, KdkitError), match="Too many levels of symbolic links"):
            write_file()
    assert all(file.is_symlink() for file in tmp_path.rglob("*.*"))


@pytest.mark.parametrize("name", ["missing", "file/below", "\0"])
def test_a_missing_path_does_not_exist(tmp_path, name):
    (tmp_path / "file").touch()
    assert exists(tmp_path / "file")
    assert is_file(tmp_path / "file")
    assert exists(tmp_path)
    assert not is_file(tmp_path)
    assert not exists(tmp_path / name)
    assert not is_file(tmp_path / name)


# Atomic writes


@pytest.mark.parametrize(("umask", "mode"), [("022", 0o644), ("002", 0o664), ("077", 0o600)])
def test_files_have_the_mode_of_the_umask(umask, mode, tmp_path):
    code = "from pathlib import Path; from kdkit.utils.files import write; write(Path('file'), 'text')"
    command = f"umask {umask}; exec {sys.executable} -c {code!r}"
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment(), check=True)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_name_is_before_the_call_returns(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(handle):
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def record_replace(self, target):
        calls.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write(tmp_path / "file", b"content")
    assert calls == ["file", "replace", "folder"]


def test_parts_are_written_one_after_the_other_and_appended_content_after_them(tmp_path):
    write(tmp_path / "file", "a", b"b", memoryview(b"xcx")[1:2])
    append(tmp_path / "file", b"d")
    assert (tmp_path / "file").read_text() == "abcd"


def test_temporary_files_of_killed_processes_are_deleted_and_no_other_files(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from kdkit.utils import files\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write(Path('run', '1-net', 'weights.safetensors'), 'text')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=False)
    (temporary,) = (tmp_path / "run" / "1-net").iterdir()
    assert re.fullmatch(r"\.weights\.safetensors\.[a-z0-9_]{8}\.tmp", temporary.name)
    others = [".hidden.tmp", "weights.tmp", ".weights.safetensors.tmp", ".notes.UPPERCASE.tmp", ".lock"]
    for name in others:
        (tmp_path / "run" / name).touch()
    (tmp_path / "run" / ".folder.abcdefgh.tmp").mkdir()
    (tmp_path / "run" / ".link.abcdefgh.tmp").symlink_to(tmp_path / "run" / ".lock")
    delete_temporary_files(tmp_path / "run")
    assert not temporary.exists()
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"1-net", ".folder.abcdefgh.tmp", ".link.abcdefgh.tmp", *others}


# The rules of Windows


def test_a_file_that_another_program_reads_for_a_moment_is_replaced_and_deleted(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")
    calls, replace, unlink = [], Path.replace, Path.unlink

    def while_read(function):
        def call(self, *args, **options):
            calls.append(function.__name__)
            if calls.count(function.__name__) < 3:
                raise PermissionError
            return function(self, *args, **options)

        return call

    monkeypatch.setattr(files, "_PAUSES", (0, 0, 0))
    monkeypatch.setattr(Path, "replace", while_read(replace))
    write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    monkeypatch.setattr(Path, "unlink", while_read(unlink))
    delete(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    assert calls == ["replace"] * 3 + ["unlink"] * 3


def test_a_file_that_stays_in_use_raises_the_error_of_the_system(tmp_path, monkeypatch):
    def replace(self, target):
        raise PermissionError("it is in use")

    monkeypatch.setattr(files, "_PAUSES", (0,))
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(PermissionError, match="it is in use"):
        write(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_in_a_folder_that_cannot_be_opened(tmp_path, monkeypatch):
    real = os.open

    def refuse_folders(path, *args, **options):
        if Path(path).is_dir():
            raise PermissionError
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse_folders)
    write(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
