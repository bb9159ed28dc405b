"""Every command that writes finds out before its work whether it can, and writes nothing if it cannot."""

import errno
import os
from itertools import product

import click
import pytest

from kdkit.cli import repeat
from kdkit.cli.main import add_plugin_commands, cli
from kdkit.utils import files

# The recipe, the run, the network and the address do not exist or fail, so that any work would give another error.
RECIPE = "def recipe(): raise RuntimeError('this is work')\n"

# Arguments up to the path that is written, by the command and the name of that parameter.
FILES = {
    ("check", "svg"): ["check", "recipe.py", "--svg"],
    ("report", "out"): ["report", "run", "--out"],
    ("card", "out"): ["card", "run", "--out"],
    ("predict", "out"): ["predict", "student.onnx", "records", "--out"],
    ("ecg doctor", "json_file"): ["ecg", "doctor", "records", "--json"],
    ("ecg folds", "out"): ["ecg", "folds", "records", "--out"],
    ("new recipe", "path"): ["new", "recipe", "digits"],
}
FOLDERS = {
    ("run", "out"): ["run", "recipe.py", "--out"],
    ("rerun", "out"): ["rerun", "run", "--out"],
    ("sweep", "out"): ["sweep", "recipe.py", "--out"],
    ("export", "out"): ["export", "run", "--out"],
    ("new plugin", "path"): ["new", "plugin", "kd_new"],
    ("ecg fetch", "folder"): ["ecg", "fetch", "ptb-xl", "--base-url", "http://localhost:1"],
    ("ecg prepare", "location"): ["ecg", "prepare", "records", "--store"],
}
SEEDS = ["run", "recipe.py", "--seeds", "2", "--out"]
# Paths that are read, or in which files are deleted.
READ = {
    ("list", "what"), ("doctor", "runs"), ("classes", "folder"), ("cache", "folder"), ("evaluate", "weights"),
    ("report", "folders"), ("card", "folder"), ("export", "folder"), ("rerun", "folder"), ("predict", "model"),
    ("predict", "records"), ("ecg store", "location"), ("run", "file"), ("check", "file"), ("evaluate", "file"),
    ("sweep", "file"),
}  # fmt: skip


def commands(group, prefix=""):
    """Yield the name and the command of each command below a group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def test_the_lists_of_this_test_have_every_path_that_a_command_takes():
    add_plugin_commands()
    paths = {
        (name, parameter.name)
        for name, command in commands(cli)
        # Without the options of a recipe on which an earlier test called the command.
        for parameter in getattr(command, "command_params", command.params)
        if isinstance(parameter.type, click.Path) and not parameter.type.exists
    }
    assert paths == {*FILES, *FOLDERS} | READ


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Return a folder with a recipe that fails, a file, and an empty folder of records."""
    monkeypatch.setattr(repeat, "recorded_arguments", lambda _run, *, trust: ["recipe.py"])
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "file").touch()
    (tmp_path / "records").mkdir()
    return tmp_path


def require_unwritten(there, done):
    """Raise if a command did anything but print one message about its output."""
    assert done.code == 2, done
    reasons = ("cannot be written", "is not a folder", "is a directory", "records exists")
    assert any(reason in done.err for reason in reasons), done
    assert "this is work" not in done.err
    assert "Traceback" not in done.err
    assert sorted(path.name for path in there.rglob("*")) == ["file", "recipe.py", "records"]


# The longest name of a file leaves room for that of a temporary one.
@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        *product([*FILES.values(), *FOLDERS.values(), SEEDS], ["file/below", "file/new/below", "new/" + "x" * 300]),
        *product(FILES.values(), ["x" * 250, "records"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value[:10],
)
def test_a_path_that_cannot_be_written_is_refused_before_the_work(there, kdkit_here, arguments, path):
    require_unwritten(there, kdkit_here(*arguments, path))


@pytest.mark.parametrize("fault", [errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("arguments", [*FILES.values(), *FOLDERS.values(), SEEDS], ids=" ".join)
def test_a_folder_that_takes_no_file_is_found_before_the_work(there, kdkit_here, monkeypatch, arguments, fault):
    def fail(*_args, **options):
        raise OSError(fault, os.strerror(fault), str(options["dir"]))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", fail)
    monkeypatch.setattr(files.tempfile, "mkstemp", fail)
    done = kdkit_here(*arguments, "output" if arguments[:2] == ["new", "recipe"] else "new/output")
    require_unwritten(there, done)
    assert os.strerror(fault) in done.err


def test_a_check_leaves_nothing_and_accepts_what_can_be_written(tmp_path):
    (tmp_path / "old").write_text("old")
    for path in (tmp_path / "old", tmp_path / "new", tmp_path / "a" / "b" / "new"):
        files.require_output(path)
    files.require_output_folder(tmp_path)
    files.require_output_folder(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_device_is_not_replaced_by_a_file():
    with pytest.raises(files.KdkitError, match="it is not a regular file"):
        files.require_output(files.Path(os.devnull))
