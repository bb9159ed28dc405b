"""Tests of the import of a recipe file."""

import sys

from kdkit.plugins.recipe_file import load_file


def test_a_file_that_changes_the_search_path_still_imports_the_files_next_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "next_to_it.py").write_text("VALUE = 1")
    path = tmp_path / "changes_path.py"
    path.write_text(
        "import sys\nsys.path.insert(0, '/elsewhere')\ndef read():\n    import next_to_it\n    return next_to_it.VALUE"
    )
    assert load_file(path).read() == 1
