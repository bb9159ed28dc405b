"""A leading `~` in a path that a user passes is the home folder, on the command line and in Python."""

from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from kdkit import Net, RunOptions, Study
from kdkit.loggers import CsvLogger
from kdkit.utils.paths import UserPath, user_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    return tmp_path


def test_folders_and_files_that_begin_with_a_tilde_are_below_the_home_folder(home):
    options = RunOptions(out="~/runs/first", teacher_cache=Path("~/cache"))
    assert options.out == home / "runs/first"
    assert options.teacher_cache == home / "cache"
    assert Study("~/study", ()).folder == home / "study"
    assert CsvLogger("~/log.csv").path == home / "log.csv"
    module = nn.Linear(2, 2)
    torch.save(module.state_dict(), home / "teacher.pth")
    assert Net("teacher", nn.Linear(2, 2), weights="~/teacher.pth").trained


def test_an_option_after_an_equals_sign_is_below_the_home_folder(home):
    seen = []
    command = click.Command(
        "run", callback=lambda out: seen.append(out), params=[click.Option(["--out"], type=UserPath())]
    )
    assert CliRunner().invoke(command, ["--out=~/runs"]).exit_code == 0
    assert seen == [home / "runs"]


def test_other_tildes_are_kept(home):
    assert user_path("runs/~/a~b") == Path("runs/~/a~b")
    assert user_path("~no-such-user-of-kdkit/runs") == Path("~no-such-user-of-kdkit/runs")
