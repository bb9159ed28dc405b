"""The built sdist and wheel, tried from an empty folder in a fresh environment."""

import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers.environments import copy_sources, fresh_environment, install

pytestmark = pytest.mark.slow

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(python, kind, sources, folder):
    """Build an sdist or a wheel of the sources, as `python -m build` does in its environment. Returns the file."""
    command = [python, "-c", BUILD, f"build_{kind}", folder]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return Path(folder) / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that is built from the built sdist, so that the sdist is complete."""
    folder = tmp_path_factory.mktemp("built")
    python = fresh_environment(folder)
    sdist = build(python, "sdist", copy_sources(folder), folder)
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 lacks it
        archive.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build(python, "wheel", unpacked, folder)


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The Python of a fresh environment with the wheel."""
    python = fresh_environment(tmp_path_factory.mktemp("fresh"))
    install(python, wheel)
    return python


@pytest.fixture
def kdkit(environment, tmp_path):
    """Run the installed program in an empty folder, without this checkout."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*args, code=0):
        program = environment.with_name("kdkit")
        done = subprocess.run(
            [program, *map(str, args)], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False,
            timeout=900,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout

    return run


def test_the_wheel_has_the_types_the_templates_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "kdkit/py.typed",
        "kdkit/__init__.pyi",
        "kdkit/templates/digits.py",
        "kdkit/templates/images.py",
        "kdkit/templates/own_data.py",
        "kdkit/templates/segmentation.py",
        "kdkit/templates/text_classifier.py",
        "kdkit/templates/plugin/pyproject.toml",
        "kdkit/templates/plugin/README.md",
        "kdkit/templates/plugin/my_plugin/plugin.py",
        "kdkit/templates/plugin/tests/test_my_plugin.py",
        "kdkit_ecg/templates/lrhnet.py",
    } <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kdkit", "kdkit_ecg"}
    assert not [name for name in names if name.endswith(".pyc")]


def test_a_recipe_of_the_wheel_runs_in_an_empty_folder(kdkit, tmp_path):
    kdkit("new", "recipe", "lrhnet")
    out = kdkit("run", "lrhnet.py", "--epochs", 1, "--records", 64, "--width", 4, "--device", "cpu")
    assert "Metrics on test" in out
    (folder,) = (tmp_path / "runs").glob("lrhnet-*")
    assert (folder / "metrics.json").is_file()
    # The cache is on: torch lies outside of the environment's own site-packages.
    assert list((tmp_path / "runs" / "teacher_cache").glob("*/meta.json"))
    assert "student" in kdkit("classes", folder)


def test_the_other_commands_of_the_wheel_work(kdkit, tmp_path):
    assert "no problems found" in kdkit("doctor") or "note:" in kdkit("doctor")
    assert "soft_targets" in kdkit("list")
    kdkit("new", "plugin", "blue_loss")
    assert (tmp_path / "blue_loss" / "tests" / "test_blue_loss.py").is_file()
    assert not list(tmp_path.rglob("*.pyc"))
