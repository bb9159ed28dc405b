"""Tests of the outline of a recipe file, which is read without importing it."""

from pathlib import Path
from textwrap import dedent
from typing import Literal

import pytest

from kdkit.plugins.recipe_file import read_recipe_file
from kdkit.plugins.recipe_outline import read_outline
from tests.helpers.command_line import ROOT

EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if "def recipe(" in path.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_outline_of_an_example_is_what_its_import_gives(path):
    outline, file = read_outline(path), read_recipe_file(path)
    assert outline is not None
    assert outline.parameters == file.parameters
    assert outline.description == file.description


@pytest.fixture
def outline(tmp_path):
    def read(text):
        (tmp_path / "mine.py").write_text(dedent(text))
        return read_outline(tmp_path / "mine.py")

    return read


def test_types_and_defaults_of_every_kind_are_read(outline):
    result = outline('''
        """The file."""
        from pathlib import Path
        from typing import Literal as L
        import a_package_that_does_not_exist
        KIND, WIDTH = L["a", "b"], 3
        Kind = L["a", "b"]
        SIZE = 16

        def recipe(a: int = SIZE, b: Path | None = None, c: Kind = "a", d: tuple[int, ...] = (1, -2), *, e: "float"):
            """Return it.

            b: a folder.
            """
    ''')
    assert result.description == "The file."
    values = [(p.name, p.type, p.multiple, p.default, p.required, p.help) for p in result.parameters]
    assert values == [
        ("a", int, False, 16, False, ""),
        ("b", Path, False, None, False, "a folder."),
        ("c", Literal["a", "b"], False, "a", False, ""),
        ("d", int, True, (1, -2), False, ""),
        ("e", float, False, None, True, ""),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "def recipe(width: int = compute()): ...",  # code of the file
        "from mine import Width\ndef recipe(width: Width = 3): ...",
        "@decorated\ndef recipe(width: int = 3): ...",
        "def recipe(width: int = 3): ...\nrecipe = wrap(recipe)",
        "def recipe(width: int = 3): ...\nfrom mine import recipe",
        "def recipe(width=3): ...",  # an error, which the import explains
        "def recipe(width: int = UNKNOWN): ...",
        "WIDTH = 3\nWIDTH += 1\ndef recipe(width: int = WIDTH): ...",
        "WIDTH = 3\nif True:\n    WIDTH = 4\ndef recipe(width: int = WIDTH): ...",
        "WIDTH = (1, 2)[5]\ndef recipe(width: int = WIDTH): ...",
        "class int: ...\ndef recipe(width: int = 3): ...",
        "from mine import *\ndef recipe(width: int = 3): ...",
        f"X = {'-' * 100_000}1\ndef recipe(width: int = 3): ...",
        "def recipe(:",
        "def recipe(width: int, width: int): ...",  # which the parser accepts
        "def make(): ...",
    ],
)
def test_a_file_that_has_to_be_imported_has_no_outline(outline, text):
    assert outline(text) is None


def test_help_and_a_wrong_option_do_not_import_the_file(kdkit_here, tmp_path):
    (tmp_path / "mine.py").write_text('"""Mine."""\nimport missing\n\ndef recipe(width: int = 3): ...\n')
    shown = kdkit_here("run", "mine.py", "--help")
    assert shown.code == 0
    assert "--width INTEGER" in shown.out
    assert "Mine." in shown.out
    typo = kdkit_here("run", "mine.py", "--widht", "4")
    assert typo.code == 2
    assert "Did you mean '--width'" in typo.err
    assert "missing" in kdkit_here("run", "mine.py", "--width", "4").err
