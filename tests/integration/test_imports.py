"""What an import costs, and that every name of the two faces leads somewhere."""

import subprocess
import sys

import pytest

import kdkit
import kdkit_ecg
from tests.helpers.command_line import environment

HEAVY = ("timm", "torchvision", "sklearn", "wfdb", "pandas", "scipy", "matplotlib")


@pytest.mark.parametrize("package", ["kdkit", "kdkit_ecg"])
@pytest.mark.parametrize("what", ["import {0}", "import {0}; [getattr({0}, name) for name in dir({0})]"])
def test_an_import_costs_torch_and_nothing_more(package, what):
    heavy = HEAVY if package == "kdkit" or "dir" not in what else ("timm", "torchvision", "sklearn", "wfdb", "pandas")
    code = f"import sys; {what.format(package)}; print([each for each in {heavy!r} if each in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("package", [kdkit, kdkit_ecg], ids=lambda each: each.__name__)
def test_every_name_of_a_face_leads_somewhere(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = package.Nonsense


@pytest.mark.parametrize("package", [kdkit, kdkit_ecg], ids=lambda each: each.__name__)
def test_the_names_of_a_face_are_sorted(package):
    assert list(package.__all__) == sorted(package.__all__)
