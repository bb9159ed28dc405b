"""Tests of the import of a recipe file."""

import sys
from pathlib import Path

import pytest

from kdkit.errors import RecipeError, Terminated
from kdkit.plugins.recipe_file import load_file, recipe_errors


def test_a_file_that_changes_the_search_path_still_imports_the_files_next_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "next_to_it.py").write_text("VALUE = 1")
    path = tmp_path / "changes_path.py"
    path.write_text(
        "import sys\nsys.path.insert(0, '/elsewhere')\ndef read():\n    import next_to_it\n    return next_to_it.VALUE"
    )
    assert load_file(path).read() == 1


def test_a_file_that_exits_is_explained_but_a_signal_passes():
    with pytest.raises(RecipeError, match="it raises SystemExit"), recipe_errors(Path("f.py"), "it raises"):
        raise SystemExit
    with pytest.raises(Terminated), recipe_errors(Path("f.py"), "reading it raises"):
        raise Terminated
