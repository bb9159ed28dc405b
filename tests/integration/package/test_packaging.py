"""Tests of what is installed: an editable install that editors follow, the metadata, and the files of an sdist."""

import re
import subprocess
import sys
import tarfile
import tomllib
from email import message_from_string
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from tests.helpers.environments import copy_sources, fresh_environment, install

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    """An environment with an editable kdkit: its Python, its site-packages, and the sources."""
    folder = tmp_path_factory.mktemp("editable")
    sources, python = copy_sources(folder), fresh_environment(folder)
    return python, install(python, "--editable", sources), sources


def test_an_editable_install_is_a_path_and_not_an_import_hook(editable):
    _python, site, sources = editable
    (file,) = site.glob("__editable__*kdkit*.pth")
    assert file.read_text().strip() == str(sources)  # a line that begins with "import" would be code
    assert not list(site.glob("__editable__*finder*"))


@pytest.mark.slow
def test_mypy_finds_the_types_of_an_editable_install(editable, tmp_path):
    python, _site, _sources = editable
    code = tmp_path / "user.py"
    code.write_text("import kdkit\nkdkit.Training(epochs='3')\nkdkit.run(kdkit.Recipe, sed=3)\n")
    mypy = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", tmp_path / "cache", code]
    done = subprocess.run(mypy, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert "import-not-found" not in done.stdout
    assert 'Argument "epochs" to "Training" has incompatible type "str"' in done.stdout
    assert 'Unexpected keyword argument "sed" for "run"' in done.stdout


def test_the_metadata_names_authors_addresses_and_extras(editable):
    _python, site, _sources = editable
    metadata = message_from_string(next(site.glob("kdkit-*.dist-info/METADATA")).read_text())
    assert metadata["Author"]
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= {
        line.split(",")[0] for line in metadata.get_all("Project-URL")
    }
    assert len(metadata["Keywords"].split(",")) >= 5
    assert any("Intended Audience :: Developers" in line for line in metadata.get_all("Classifier"))
    requirements = metadata.get_all("Requires-Dist")
    extras = {name: set() for name in metadata.get_all("Provides-Extra")}
    for line in requirements:
        if marker := re.search(r'(\S+?)[<>=~].*extra == "([\w-]+)"', line):
            extras[marker[2]].add(marker[1])
    assert {"onnx", "onnxscript", "onnxruntime"} <= extras["export"]


def test_ci_runs_on_the_lowest_and_the_newest_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = [line for line in project["dependencies"] if line.startswith("torch>=")]
    pythons = [line.split(" :: ")[-1] for line in project["classifiers"] if ":: Python :: 3." in line]
    lowest = {"python": project["requires-python"].removeprefix(">="), "torch": torch.replace(">=", "==") + ".*"}
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["include"] == [
        lowest,
        {"python": pythons[-1], "torch": "torch"},
    ]


def test_an_sdist_has_the_changelog_the_docs_and_the_tests(tmp_path):
    sources = copy_sources(tmp_path)
    code = dedent("""
        import sys
        from setuptools import build_meta
        print(build_meta.build_sdist(sys.argv[1]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=sources, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "CHANGELOG.md", "LICENSE", "README.md", "docs/data.md", "docs/losses.md", "docs/images/smlkd.svg",
        "mkdocs.yml", "examples/hinton.py", "tests/conftest.py", "reproductions/lrhnet/recipe.py", "kdkit/__init__.pyi",
    } <= names  # fmt: skip
    assert not [name for name in names if name.endswith(".pyc")]
