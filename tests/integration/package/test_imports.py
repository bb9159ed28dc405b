"""Tests of the public names of kdkit and kdkit_ecg, and of the packages that their import loads."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kdkit
import kdkit_ecg
from tests.helpers.command_line import environment

HEAVY = ("torch._dynamo", "timm", "torchvision", "sklearn", "wfdb", "pandas", "scipy", "matplotlib")
ALL_NAMES = "import {0}; [getattr({0}, name) for name in dir({0})]"


# All names of kdkit include its import, and the names of kdkit_ecg may load more: the suite has time for the other two.
@pytest.mark.parametrize(
    ("code", "package"),
    [
        pytest.param("import {0}", "kdkit", marks=pytest.mark.slow),
        ("import {0}", "kdkit_ecg"),
        (ALL_NAMES, "kdkit"),
        pytest.param(ALL_NAMES, "kdkit_ecg", marks=pytest.mark.slow),
    ],
)
def test_an_import_loads_torch_and_no_other_heavy_package(package, code):
    # The ECG filters need scipy.
    heavy = HEAVY if package == "kdkit" or code != ALL_NAMES else ("timm", "torchvision", "sklearn", "wfdb", "pandas")
    script = f"import sys; {code.format(package)}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment(), timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("package", [kdkit, kdkit_ecg], ids=lambda package: package.__name__)
def test_every_public_name_can_be_imported(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = package.Nonsense


@pytest.mark.parametrize("package", [kdkit, kdkit_ecg], ids=lambda package: package.__name__)
def test_public_names_are_sorted(package):
    assert list(package.__all__) == sorted(package.__all__)


def test_no_line_of_the_core_names_ecg():
    # The contract of import-linter finds imports only. Templates are recipes for users, also of the plugin.
    core = Path(kdkit.__file__).parent
    files = [file for file in core.rglob("*.py") if "templates" not in file.relative_to(core).parts]
    assert len(files) > 100
    assert [str(file) for file in files if re.search(r"\becg|_ecg", file.read_text(), re.IGNORECASE)] == []
