"""The code of a recipe in a notebook has everything that the recipe uses there."""

import linecache

import pytest

from kdkit.recipe.recipe_code import code_of

CELLS = """
from dataclasses import dataclass
from functools import cache

RATE = 0.1
DEPTH = 2
SIZES = {"width": [4, 8]}
unused = 1
real = 1

def activation(x):
    return x

@dataclass
class Options:
    epochs: int = 5

class Layer:
    scale = 1.0
    @property
    def width(self):
        return SIZES["width"]
    @staticmethod
    def of(x):
        return 2 * x

class Net(Layer):
    def __init__(self):
        super().__init__()
    def forward(self, x):
        return [activation(part.real) for part in x]

@cache
def load():
    return list(range(10))

def around(depth):
    def recipe(rate=RATE, *, most=DEPTH):
        return Net(), Options(), depth, load()
    return recipe

recipe = around(depth=3)
"""


def run_cell(source, name="<cell>"):
    """Run code as a notebook does, whose source `inspect` finds in the line cache, and return its recipe."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), scope := {"__name__": "__main__"})
    return scope["recipe"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("RATE = 0.1", "RATE = 0.2"),
        ("DEPTH = 2", "DEPTH = 3"),
        ("range(10)", "range(20)"),
        ("[4, 8]", "[4, 9]"),
        ("epochs: int = 5", "epochs: int = 6"),
        ("return x\n", "return -x\n"),
        ("scale = 1.0", "scale = 2.0"),
        ('["width"]', '["width"][0]'),
        ("2 * x", "3 * x"),
        ("activation(part.real)", "activation(-part.real)"),
        ("class Net(Layer)", "class Net(object)"),
        ("depth=3", "depth=4"),
        ("Options(), depth", "Options(), -depth"),
    ],
)
def test_a_change_of_what_a_recipe_uses_changes_its_code(before, after):
    assert before in CELLS
    code = code_of(run_cell(CELLS))
    assert code != code_of(run_cell(CELLS.replace(before, after)))


def test_other_cells_and_other_names_of_cells_change_nothing():
    code = code_of(run_cell(CELLS))
    assert b"class Net(Layer)" in code
    for before, after in (("unused = 1", "unused = 2"), ("real = 1", "real = 2")):
        assert code == code_of(run_cell(CELLS.replace(before, after), "<another cell>"))


def test_a_function_without_a_source_has_no_code(monkeypatch):
    # As Python 3.13 does for `python -c`; other versions have no such entry.
    monkeypatch.setitem(linecache.cache, "<string>", (9, None, ["import a\n"], "<string>"))
    exec("def recipe(): ...", scope := {"__name__": "__main__"})
    assert code_of(scope["recipe"]) is None
